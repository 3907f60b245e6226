"""BOPs, FLOPs, OPs, parameters and bytes of a network (papers.md#operations).

One multiply-accumulate is one operation, binary or real. Convolutions and linear layers count; BatchNorm, activations,
signs, biases, pooling and residual additions do not. OPs = BOPs / 64 + FLOPs.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.counting.outside import LayerCount, Outside, check_not_lazy, on_meta
from esbnn_core.errors import InputError, check_counts, reason_of
from esbnn_core.layers import BinaryMatmul
from esbnn_core.layers.base import BinaryLayer, binary_layers, parameter_dtype
from esbnn_core.layers.hooks import drop_training_parts_
from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.match import packed_like


@dataclass(frozen=True)
class Count:
    """Cost of one forward pass for one input; `print` shows the table of layers and the sums.

    Attributes:
        bops: binary operations.
        flops: real operations, those of products with a parameter outside of any layer too.
        matmul_bops: products of two binary activations (attention), which the papers' rule leaves out of the OPs.
        matmul_flops: products of two real activations (attention), left out likewise.
        params: all parameters, without those of parts for training alone (latent_resnet18 has such).
        binary_params: weights of 1 bit each.
        latent_bytes: of all tensors of the latent checkpoint.
        packed_bytes: of all tensors of the packed checkpoint.
        layers: the rows of the table.
    """

    bops: int
    flops: int
    matmul_bops: int
    matmul_flops: int
    params: int
    binary_params: int
    latent_bytes: int
    packed_bytes: int
    layers: tuple[LayerCount, ...] = field(repr=False)

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs."""
        return self.bops / 64 + self.flops

    @property
    def ops_with_matmuls(self) -> float:
        """OPs with the products of two activations counted as well."""
        return self.ops + self.matmul_bops / 64 + self.matmul_flops

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.sums()}"

    def sums(self) -> str:
        """Operations, parameters and bytes, one a line."""
        lines = [
            f"BOPs          {self.bops / 1e9:.4f} G   (/64 = {self.bops / 64 / 1e8:.4f}e8)",
            f"FLOPs         {self.flops / 1e8:.4f}e8",
            f"OPs           {self.ops / 1e8:.4f}e8   (BOPs/64 + FLOPs)",
        ]
        if self.matmul_bops or self.matmul_flops:
            matmuls = f"binary attention: {self.matmul_bops / 1e9:.4f} G"
            if self.matmul_flops:
                matmuls = f"attention: {self.matmul_bops / 1e9:.4f} G binary, {self.matmul_flops / 1e9:.4f} G real"
            lines.append(f"with matmuls  {self.ops_with_matmuls / 1e8:.4f}e8   ({matmuls})")
        lines.append(f"parameters    {self.params:,}   of which 1-bit {self.binary_params:,}")
        lines.append(f"bytes         {self.latent_bytes:,} latent, {self.packed_bytes:,} packed")
        return "\n".join(lines)

    def table(self) -> str:
        """The layers as aligned text, MACs in millions."""
        head = ("layer", "kind", "output", "MACs (M)", "weights")
        rows = [
            (row.name, row.kind, "x".join(map(str, row.output)), f"{row.macs / 1e6:.3f}", f"{row.weights:,}")
            for row in self.layers
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
        return "\n".join(line.rstrip() for line in lines)


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all tensors in the model's state_dict."""
    return sum(t.numel() * t.element_size() for t in model.state_dict(keep_vars=True).values())


def _packed_bytes(model: nn.Module) -> int:
    """Bytes of the packed network's state_dict: each latent unit counts as the buffers of its packed module."""
    total = tensor_bytes(model)
    for module, packed in _outermost(model):
        if all(_one_bit(layer) for _, layer in binary_layers(module)):  # real weights do not pack
            total += tensor_bytes(packed) - tensor_bytes(module)
    return total


def _outermost(model: nn.Module) -> list[tuple[nn.Module, PackedLayer]]:
    """Every latent unit or layer that packing replaces, none inside another, each once, and what replaces it."""
    found: list[tuple[nn.Module, PackedLayer]] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module not in inside and (packed := packed_like(module)) is not None:
            found.append((module, packed))
            inside.update(module.modules())
    return found


def count(model: nn.Module, input_size: Sequence[int] | None = None, example: tuple[Any, ...] | None = None) -> Count:
    """Count the cost of a network for one input.

    The model is not changed: a copy runs once on the meta device, without data and in evaluation mode. A network whose
    forward takes something else than one batch of images is given an example and runs on it, with its data.

    Args:
        model: latent or packed.
        input_size: (C, H, W), or (N, C, H, W) with any N, which changes nothing: the cost is that of one input.
        example: in place of input_size the positional arguments of one forward, as of binarize_ and expand_; the cost
            is that of all of it, so give one image: ([image],) for torchvision's detectors. What a network makes of its
            own results, such as a box head, costs as much as there were results.

    Raises:
        InputError: the network does not run on an input of that size; not one of input_size and example.
    """
    if (input_size is None) == (example is None):
        raise InputError(
            "count must get either input_size or example: give (C, H, W), or example=(arguments of forward)"
        )
    size = () if input_size is None else tuple(input_size)
    if len(size) == 4:
        check_counts(N=size[0])
        size = size[1:]
    check_not_lazy(model)
    twin = drop_training_parts_((on_meta(model) if example is None else copy.deepcopy(model)).eval())
    rows: list[LayerCount] = []
    outside = Outside(twin, rows)
    for name, module in twin.named_modules():
        if isinstance(module, BinaryLayer | PackedLayer | BinaryMatmul | nn.modules.conv._ConvNd | nn.Linear):
            module.register_forward_hook(_hook(name, module, rows))
            outside.skip(module)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that holds several layers
    try:
        if example is not None:
            with torch.no_grad(), outside:
                twin(*copy.deepcopy(example))
        else:
            _run_on_meta(twin, size, outside)
    except Exception as error:  # the model's own code may raise anything
        given = "the example" if example is not None else f"an input of size {size}"
        raise InputError(f"the network does not run on {given}: {reason_of(error)}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    packed_weights = {id(m): math.prod(m.weight_shape) for m in twin.modules() if isinstance(m, PackedLayer)}
    binary_params = sum(m.weight.numel() for m in twin.modules() if isinstance(m, BinaryLayer) and _one_bit(m))
    binary_params += sum(packed_weights.values())
    return Count(
        bops=sum(row.macs for row in rows if row.binary and row.counted),
        flops=sum(row.macs for row in rows if not row.binary and row.counted),
        matmul_bops=sum(row.macs for row in rows if row.binary and not row.counted),
        matmul_flops=sum(row.macs for row in rows if not row.binary and not row.counted),
        params=sum(p.numel() for p in twin.parameters()) + sum(packed_weights.values()),
        binary_params=binary_params,
        latent_bytes=tensor_bytes(model),
        packed_bytes=_packed_bytes(twin),
        layers=tuple(rows),
    )


def _run_on_meta(twin: nn.Module, size: tuple[int, ...], outside: Outside) -> None:
    """Run the twin on one input without data; where that fails, with the tensors that its forward makes there too.

    A forward that reads numbers of a tensor that it makes needs them on the CPU, one that adds it to the input on meta.
    """
    x = torch.zeros(1, *size, device="meta", dtype=parameter_dtype(twin))
    try:
        with torch.no_grad(), outside:
            twin(x)
    except Exception:
        outside.start_again()
        try:
            with torch.no_grad(), torch.device("meta"), outside:
                twin(x)
        except Exception:
            outside.start_again()
        else:
            return
        raise


def _one_bit(module: nn.Module) -> bool:
    """Whether its weights are one bit each; real weights on binary activations cost real operations."""
    return isinstance(module, PackedLayer) or (isinstance(module, BinaryLayer) and module.quantizer.precision == 1)


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, PackedLayer):
        return module.weight_shape
    assert isinstance(module.weight, Tensor)
    return tuple(module.weight.shape)


def _hook(
    name: str, module: nn.Module, rows: list[LayerCount]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor | tuple[Tensor, Tensor]], None]:
    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        if isinstance(output, tuple):  # a packed unit that hands its signs on
            output = output[0]
        # one image may be several items of a layer's batch: windows of attention, boxes, tokens in front (L, N, C)
        shape = tuple(output.shape[1:] if output.shape[0] == 1 else output.shape)
        if isinstance(module, BinaryMatmul):
            macs = output.numel() * inputs[0].shape[-1]
            rows.append(LayerCount(name, "BinaryMatmul", shape, macs, 0, True, counted=False))
            return
        binary = _one_bit(module)
        weight = _weight_shape(module)
        # every filter is applied once at every position: of the map (of the input's where transposed), or matrix row
        if len(weight) == 2:
            positions = math.prod(output.shape[:-1])
        else:
            placed = inputs[0] if getattr(module, "transposed", False) else output
            positions = placed.numel() // placed.shape[1 if placed.dim() == len(weight) else 0]
        weights = math.prod(weight)
        macs = weights * positions
        rows.append(LayerCount(name, type(module).__name__, shape, macs, weights, binary))

    return record
