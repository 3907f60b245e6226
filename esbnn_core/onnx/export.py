"""A packed network as an ONNX file."""

import copy
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.files import write_atomically
from esbnn_core.models import ModelSpec, model_spec
from esbnn_core.onnx.file import BLANK, DIGEST, FORMAT_VERSION, require, seal
from esbnn_core.packed import PackedLayer, is_packed
from esbnn_core.packed.layers import HALF
from esbnn_core.transforms.as_built import spec_as_built
from esbnn_core.version import __version__

OPSET, IR_VERSION = 18, 8
"""Of the oldest runtime that has every operator in use: ONNX Runtime 1.17 and others of 2023."""
AXES = {0: "batch", 2: "height", 3: "width"}
"""Names of the dimensions of (N, C, H, W) that may change."""
MAP, BATCH = frozenset(AXES), frozenset({0})


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        size: of the file, bytes.
        inputs: for each input its name and shape, a name in it for a size that may change: ("batch", 3, 32, 32).
        outputs: likewise.
        standard: whether its operators are all standard ones.
    """

    path: Path
    size: int
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    standard: bool = False

    def __str__(self) -> str:
        """The file and its size, then a line for each input and output."""
        lines = [f"{self.path}: {self.size:,} bytes, {'standard operators' if self.standard else 'operators of esbnn'}"]
        for direction, values in (("in", self.inputs), ("out", self.outputs)):
            lines += [f"  {direction:3} {name} ({', '.join(map(str, shape))})" for name, shape in values.items()]
        return "\n".join(lines)


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | Path,
    inputs: Sequence[Tensor] | None = None,
    *,
    standard: bool = False,
    dynamic: Sequence[Collection[int]] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Exported:
    """Write a packed network as an ONNX file, atomically; weights stay bits in it, everything else is float32.

    The binary layers compute the numbers of the packed network in every bit. The real ones are the runtime's, which
    sums in another order. A network in half precision is written with exactly its values, and computes in float32.

    Args:
        model: packed, on any device; it stays as it is.
        path: of the file.
        inputs: examples, with a batch of at least 2; default: images of the size of a network of create_model.
        standard: standard ONNX operators alone, equal and slower, for runtimes that load no library; otherwise the
            binary layers are operators of the domain `esbnn`, which `session` provides.
        dynamic: for each input its dimensions that may change. Default: batch, height and width of each input
            (N, C, H, W), or its batch alone if the network fixes the size of its images; `Exported.inputs` has them.
        input_names: default images, or input_0 and so on.
        output_names: default logits for one output of a classifier, or output_0 and so on.
        classes: names of the classes, written into the metadata.
        mean: of each channel, subtracted from images in 0..1; likewise.
        std: of each channel, by which images are then divided; likewise.

    Raises:
        InputError: a network that is not packed, in float64 or on the meta device; one that torch.export cannot trace
            with these dynamic dimensions; inputs that are not given or do not fit; the extra `onnx` is not installed.
    """
    require("onnx", "onnxscript")
    network = _prepared(model)
    spec = model_spec(model)
    if inputs is None:
        if spec is None:
            raise InputError(
                "inputs must be given for a network that create_model did not build: a batch of 2 images, for example"
            )
        inputs = (torch.zeros(2, *spec.input_size),)
    inputs = tuple(inputs)
    names = list(input_names or (["images"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]))
    if output_names is None and spec is not None and spec.kind == "classifier":
        output_names = ["logits"]
    metadata = {
        "esbnn_format": FORMAT_VERSION,
        "esbnn_version": __version__,
        "esbnn_operators": "standard" if standard else "custom",
        **_about(spec, spec_as_built(model)[0], classes, mean, std),
        DIGEST: BLANK,
    }
    program = _trace(network, inputs, dynamic)
    written = _translate(program, names, output_names, standard)
    _name_axes(written.graph, names)
    _drop_traces(written)
    written.ir_version = IR_VERSION
    written.producer_name, written.producer_version = "esbnn", __version__
    written.metadata_props.clear()
    written.metadata_props.update(metadata)
    return _write(written, Path(path), standard)


def _prepared(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and in evaluation, without the lanes that PyTorch's kernels read."""
    if not is_packed(model):
        raise InputError("an ONNX file is written of a packed network, got a latent one: call pack_ first")
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise InputError(f"tensor {name} of the network is on the meta device and has no values: load a file first")
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, *HALF):
            raise InputError(
                f"tensor {name} of the network must be float32 or narrower for an ONNX file, got {tensor.dtype}: call "
                f".float() first, which rounds it"
            )
    network = copy.deepcopy(model).cpu().float().eval()
    for module in network.modules():
        if isinstance(module, PackedLayer):
            module.lanes = None
    return network


def _trace(network: nn.Module, inputs: tuple[Tensor, ...], dynamic: Sequence[Collection[int]] | None) -> Any:
    """torch's exported program, with the first of the sets of dynamic dimensions that the network allows."""
    if dynamic is None:
        batch: list[Collection[int]] = [BATCH if x.dim() else () for x in inputs]
        tries = [[MAP if x.dim() == 4 else dims for x, dims in zip(inputs, batch, strict=True)], batch]
    else:
        tries = [list(dynamic)]
    failed: Exception | None = None
    for places in tries:
        shapes = tuple(dict.fromkeys(sorted(dims), torch.export.Dim.DYNAMIC) for dims in places)
        try:
            return torch.export.export(network, inputs, dynamic_shapes=shapes)
        except Exception as error:  # dynamo's many, and whatever a forward raises
            failed = error
    reason = next(iter(str(failed).strip().splitlines()), type(failed).__name__)
    last = [sorted(dims) for dims in tries[-1]]
    raise InputError(
        f"the network cannot be traced by torch.export with the dynamic dimensions {last} ({reason[:300]}): give other "
        f"inputs or fewer dynamic dimensions"
    ) from failed


def _about(
    spec: ModelSpec | None,
    named: ModelSpec | None,
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, str]:
    """What is known of the network, as metadata; its name and options only if they still build it."""
    found: dict[str, str] = {}
    if named is not None:
        found = {"network": named.name, "options": json.dumps(dict(named.options), sort_keys=True)}
        number = named.options.get("num_classes")
        if classes is not None and number is not None and len(classes) != number:
            raise InputError(
                f"classes must be the {number} names of {named.name}, got {len(classes)}: give one for each"
            )
    if spec is not None:
        found["input_size"] = json.dumps(spec.input_size)
        channels = spec.input_size[0]
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise InputError(
                    f"{name} must have {channels} numbers, one a channel, got {len(values)}: give them all"
                )
    if classes is not None:
        if any("\n" in name for name in classes):
            raise InputError("classes must be names of one line each, got one with a line break: remove it")
        found["classes"] = "\n".join(classes)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            found[name] = json.dumps([float(value) for value in values])
    return found


def _translate(program: Any, names: list[str], output_names: Sequence[str] | None, standard: bool) -> Any:
    """The onnx_ir.Model of a program."""
    from esbnn_core.onnx.operators import translations

    one = len(program.graph_signature.user_outputs) == 1
    if output_names is None or (len(output_names) == 1 and not one):
        output_names = [f"output_{i}" for i in range(len(program.graph_signature.user_outputs))]
    made = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        external_data=False,
        input_names=names,
        output_names=list(output_names),
        custom_translation_table=translations(),
    )
    assert made is not None
    model = made.model
    if standard:
        from esbnn_core.onnx.standard import to_standard

        to_standard(model)
    else:
        from esbnn_core.onnx.rewrite import rewrite

        rewrite(model)
    return model


def _name_axes(graph: Any, names: Sequence[str]) -> None:
    """Give the sizes that may change the names of AXES, in every shape of the graph."""
    import onnx_ir as ir

    renamed: dict[str, str] = {}
    for number, value in enumerate(graph.inputs):
        for place, size in enumerate(value.shape):
            if not isinstance(size, int):
                suffix = "" if number == 0 else f"_of_{names[number]}"
                renamed.setdefault(size.value, AXES.get(place, f"size_{place}") + suffix)

    def name(size: Any) -> Any:
        if isinstance(size, int) or size.value is None:  # an unknown size has no name: equal names are equal sizes
            return size
        return re.sub(r"\bs\d+\b", lambda found: renamed.get(found[0], found[0]), str(size.value))

    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([name(size) for size in value.shape])


def _drop_traces(model: Any) -> None:
    """Drop what the exporter notes on each node: source lines of this machine, larger than the weights of a network."""
    for graph in model.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _write(model: Any, path: Path, standard: bool) -> Exported:
    from onnx_ir import serde

    data = seal(serde.serialize_model(model).SerializeToString())
    write_atomically(path, data)
    return Exported(path, len(data), _shapes(model.graph.inputs), _shapes(model.graph.outputs), standard)


def _shapes(values: Sequence[Any]) -> dict[str, tuple[int | str, ...]]:
    sizes = {str(value.name): value.shape or () for value in values}
    return {name: tuple(s if isinstance(s, int) else str(s.value) for s in shape) for name, shape in sizes.items()}
