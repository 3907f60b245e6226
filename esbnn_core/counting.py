"""BOPs, FLOPs, OPs, parameters and bytes of a network (spec 0.6).

One multiply-accumulate is one operation, binary or real. Convolutions and linear layers count; BatchNorm, activations,
signs, biases, pooling and residual additions do not. OPs = BOPs / 64 + FLOPs.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.packed import PackedLayer, packed_like


@dataclass(frozen=True)
class LayerCount:
    """One row of the table; macs are multiply-accumulates for one input, `binary` says of which kind."""

    name: str
    kind: str
    output: tuple[int, ...]
    macs: int
    weights: int
    binary: bool


@dataclass(frozen=True)
class Count:
    """Cost of one forward pass for one input.

    bops, flops, ops: operations. params: all parameters; binary_params: weights of 1 bit each. latent_bytes,
    packed_bytes: tensors of the latent and of the packed checkpoint. layers: the table.
    """

    bops: int
    flops: int
    params: int
    binary_params: int
    latent_bytes: int
    packed_bytes: int
    layers: tuple[LayerCount, ...]

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs."""
        return self.bops / 64 + self.flops

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
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def _packed_bytes(model: nn.Module) -> int:
    """Bytes of the state_dict that the packed network has: latent units exchanged for their packed modules' buffers."""
    total = tensor_bytes(model)
    for module in _outermost(model):
        packed = packed_like(module)
        assert packed is not None
        total += tensor_bytes(packed) - tensor_bytes(module)
    return total


def _outermost(model: nn.Module) -> list[nn.Module]:
    """Every latent unit or layer that packing exchanges, none inside another, each once."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module not in inside and packed_like(module) is not None:
            found.append(module)
            inside.update(module.modules())
    return found


def count(model: nn.Module, input_size: tuple[int, ...]) -> Count:
    """Count a network, latent or packed, for one input of `input_size` = (C, H, W).

    The model is left alone: a copy runs once on the meta device, without data and in evaluation mode.

    Raises:
        InputError: the network does not run on an input of that size.
    """
    ghost = copy.deepcopy(model).to("meta").eval()
    rows: list[LayerCount] = []
    hooks = [
        module.register_forward_hook(_hook(name, module, rows))
        for name, module in ghost.named_modules()
        if isinstance(module, BinaryLayer | PackedLayer | nn.modules.conv._ConvNd | nn.Linear)
    ]
    try:
        with torch.no_grad():
            ghost(torch.zeros(1, *input_size, device="meta"))
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise InputError(f"the network does not run on an input of size {input_size}: {text}") from error
    finally:
        for hook in hooks:
            hook.remove()
    packed_weights = {id(m): math.prod(m.weight_shape) for m in model.modules() if isinstance(m, PackedLayer)}
    binary_params = sum(m.weight.numel() for m in model.modules() if isinstance(m, BinaryLayer))
    binary_params += sum(packed_weights.values())
    return Count(
        bops=sum(row.macs for row in rows if row.binary),
        flops=sum(row.macs for row in rows if not row.binary),
        params=sum(p.numel() for p in model.parameters()) + sum(packed_weights.values()),
        binary_params=binary_params,
        latent_bytes=tensor_bytes(model),
        packed_bytes=_packed_bytes(model),
        layers=tuple(rows),
    )


def _weight_shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, PackedLayer):
        return module.weight_shape
    assert isinstance(module.weight, Tensor)
    return tuple(module.weight.shape)


def _hook(
    name: str, module: nn.Module, rows: list[LayerCount]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        binary = isinstance(module, BinaryLayer | PackedLayer)
        weight = _weight_shape(module)
        # every filter is applied once at every position: places of a map (of the input where transposed), matrix rows
        if len(weight) == 2:
            positions = math.prod(output.shape[1:-1])
        else:
            placed = inputs[0] if isinstance(module, nn.modules.conv._ConvTransposeNd) else output
            positions = math.prod(placed.shape[2:])
        weights = math.prod(weight)
        macs = weights * positions
        rows.append(LayerCount(name, type(module).__name__, tuple(output.shape[1:]), macs, weights, binary))

    return record
