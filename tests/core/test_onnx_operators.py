"""The operators for ONNX Runtime, single layers: every bit is the reference's, and the standard operators' too."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esbnn_core import pack_
from esbnn_core.errors import InputError
from esbnn_core.kernels import ConvCall, Epilogue, Geometry, cpu, reference, words_of
from esbnn_core.kernels.checks import check_conv
from esbnn_core.units import TokenUnit
from tests.helpers.networks import stir

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
ir = pytest.importorskip("onnx_ir", reason="the extra onnx is not installed")

from esbnn_core.onnx import export_onnx, operators_library  # noqa: E402
from esbnn_core.onnx.operators import CONVOLUTION_INPUTS, CONVOLUTION_NUMBERS, CONVOLUTION_PAIRS  # noqa: E402
from esbnn_core.onnx.standard import to_standard  # noqa: E402

FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
NUMBERS = (*CONVOLUTION_NUMBERS, *CONVOLUTION_PAIRS)


@pytest.fixture(scope="module")
def library() -> str:
    try:
        return str(operators_library())
    except InputError as error:
        pytest.skip(str(error))


@dataclass
class Layer:
    """A convolution with drawn numbers, everything but its input."""

    geometry: Geometry
    epilogue: Epilogue
    weight: Tensor
    shift: Tensor | None
    names: dict[str, str] = field(default_factory=dict)

    def run(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        call = ConvCall(x, self.weight, self.geometry, self.epilogue._replace(residual=residual), self.shift)
        check_conv(call)
        return reference.binary_conv2d(call)

    def node(self, x: str, y: str, bits: str, residual: str = "") -> tuple[Any, list[Any]]:
        """The node, and its initializers."""
        e = self.epilogue
        vectors = {"weight": self.weight, "scale": e.scale, "bias": e.bias, "prelu": e.prelu, "rprelu": e.rprelu}
        vectors |= {"sign_shift": e.sign_shift, "shift": self.shift}
        stored = [onnx.numpy_helper.from_array(t.numpy(), f"{y}.{k}") for k, t in vectors.items() if t is not None]
        known = {"x": x, "residual": residual, **{k: f"{y}.{k}" for k, t in vectors.items() if t is not None}}
        numbers = {**self.geometry._asdict(), "sign_groups": e.sign_groups}
        made = onnx.helper.make_node(
            "BinaryConv2d",
            [known.get(name, "") for name in CONVOLUTION_INPUTS],
            [y, bits],
            domain="esbnn",
            **{name: numbers[name] for name in NUMBERS},
        )
        return made, stored


def draw_layer(rng: random.Random, channels: int, shift: bool, sign_groups: tuple[int, ...] = (0,)) -> Layer:
    groups = rng.choice([g for g in (1, 1, 2, 4) if channels % g == 0])
    filters, copies = groups * rng.choice([1, 5, 8, 16, 20]), rng.choice([1, 1, 2, 4])
    kernel = rng.choice([(1, 1), (3, 3), (3, 3), (2, 3)])
    geometry = Geometry(
        channels,
        stride=rng.choice([(1, 1), (2, 1), (2, 2)]),
        padding=rng.choice([(0, 0), (1, 1), (2, 1)]),
        pad_value=rng.choice([0, -1]),
        dilation=rng.choice([(1, 1), (1, 2)]),
        groups=groups,
        copies=copies,
    )
    out = copies * filters
    g = torch.Generator().manual_seed(rng.getrandbits(30))

    def vector(*shape: int, there: bool = True) -> Tensor | None:
        # quarters, so that zeros and ties happen
        return (torch.randn(*shape, generator=g) * 4).round() / 4 if there else None

    fitting = [n for n in sign_groups if n == 0 or out % n == 0]
    number = rng.choice(fitting)
    scale = vector(out)
    assert scale is not None
    epilogue = Epilogue(
        scale.abs() + 0.25,
        vector(out),
        vector(out, there=rng.random() < 0.5),
        None,
        vector(3, out, there=rng.random() < 0.5),
        vector(out, there=number > 0 and rng.random() < 0.5),
        number,
    )
    bits = torch.rand(filters, *kernel, channels // groups, generator=g) < 0.5
    return Layer(geometry, epilogue, reference.pack_bits(bits), vector(channels, there=shift))


def model_of(
    nodes: list[Any], stored: list[Any], x_type: int, x_shape: list[int | None], outputs: dict[str, int]
) -> Any:
    graph = onnx.helper.make_graph(
        nodes,
        "layers",
        [onnx.helper.make_tensor_value_info("x", x_type, x_shape)],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        stored,
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("esbnn", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def session_of(model: Any, library: str | None, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if library is not None:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def standard_of(model: Any) -> Any:
    made = ir.from_proto(model)
    to_standard(made)
    return ir.to_proto(made)


def two_layers(seed: int) -> tuple[Layer, Layer, Any]:
    """A layer on real values whose signs a second one reads, with its output as residual where that fits."""
    rng = random.Random(seed)
    first = draw_layer(rng, rng.choice([1, 16, 31, 32, 40, 64, 96]), rng.random() < 0.5, (1, 2, 4))
    out = first.geometry.copies * first.weight.shape[0]
    second = draw_layer(rng, out, False)
    second.geometry = second.geometry._replace(groups=first.epilogue.sign_groups)
    per_group = out // second.geometry.groups
    filters = second.geometry.groups * 4
    bits = torch.rand(filters, *second.weight.shape[1:3], per_group) < 0.5
    second.weight = reference.pack_bits(bits)
    width = second.geometry.copies * filters
    rows = None if second.epilogue.rprelu is None else torch.randn(3, width)
    second.epilogue = Epilogue(torch.randn(width), torch.randn(width), None, None, rows)
    one, stored = first.node("x", "y", "bits")
    other, more = second.node("bits", "z", "")
    channels = first.geometry.channels
    model = model_of([one, other], stored + more, FLOAT, [None, None, None, channels], {"y": FLOAT, "z": FLOAT})
    return first, second, model


def maps(*shape: int) -> Tensor:
    """(N, C, H, W) with zeros in it."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 2).round() / 2


@pytest.mark.parametrize("seed", range(24))
def test_every_bit_is_the_references(seed: int, library: str) -> None:
    torch.manual_seed(seed)
    first, second, model = two_layers(seed)
    runs = session_of(model, library), session_of(standard_of(model), None)
    for batch, height, width in ((1, 12, 13), (3, 11, 17)):
        x = maps(batch, first.geometry.channels, height, width)
        y, bits = first.run(x)
        z, _ = second.run(bits)
        for session in runs:
            got_y, got_z = session.run(None, {"x": x.permute(0, 2, 3, 1).numpy()})
            assert np.array_equal(got_y, y.permute(0, 2, 3, 1).numpy())
            assert np.array_equal(got_z, z.permute(0, 2, 3, 1).numpy())
            assert y.std() > 0 and z.std() > 0


@pytest.mark.parametrize("seed", range(6))
def test_a_residual_and_the_packed_signs_are_the_references(seed: int, library: str) -> None:
    rng = random.Random(seed)
    layer = draw_layer(rng, 24, True, (1, 2))
    out = layer.geometry.copies * layer.weight.shape[0]
    layer.geometry = layer.geometry._replace(stride=(1, 1), padding=(0, 0))
    h, w = (1 + d * (k - 1) for d, k in zip(layer.geometry.dilation, layer.weight.shape[1:3], strict=True))
    node, stored = layer.node("x", "y", "bits", "r")
    # the residual is made of x, so that its shape follows: its first channel, cropped and repeated
    crop = {"ends": [2**31, -(h - 1) or 2**31, -(w - 1) or 2**31, 1], "starts": [0] * 4, "axes": [0, 1, 2, 3]}
    stored += [onnx.numpy_helper.from_array(np.array(v, np.int64), k) for k, v in crop.items()]
    stored.append(onnx.numpy_helper.from_array(np.array([1, 1, 1, out], np.int64), "repeats"))
    before = [
        onnx.helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["c"]),
        onnx.helper.make_node("Tile", ["c", "repeats"], ["r"]),
    ]
    model = model_of([*before, node], stored, FLOAT, [None, None, None, 24], {"y": FLOAT, "bits": INT32})
    session = session_of(model, library)
    plain = model_of([*before, node], stored, FLOAT, [None, None, None, 24], {"y": FLOAT})
    standard = session_of(standard_of(plain), None)
    for batch, height, width in ((2, 9, 8), (1, 7, 15)):
        x = maps(batch, 24, height, width)
        residual = x[:, :1, : height - h + 1, : width - w + 1].expand(-1, out, -1, -1)
        y, bits = layer.run(x, residual)
        feed = {"x": x.permute(0, 2, 3, 1).numpy()}
        got_y, got_bits = session.run(None, feed)
        assert np.array_equal(got_y, y.permute(0, 2, 3, 1).numpy()) and np.array_equal(got_bits, bits.numpy())
        assert np.array_equal(standard.run(None, feed)[0], got_y)


def usable_paths() -> list[str]:
    return [name for name, here in cpu.choose()[1].paths if here]


def test_threads_and_paths_change_no_bit(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    layer = draw_layer(rng, 128, True, (1,))
    layer.weight = reference.pack_bits(torch.rand(64, 3, 3, 128) < 0.5)
    layer.geometry = Geometry(128, padding=(1, 1), copies=1)
    layer.epilogue = Epilogue(torch.randn(64), torch.randn(64), sign_groups=1)
    node, stored = layer.node("x", "y", "bits")
    model = model_of([node], stored, FLOAT, [None, None, None, 128], {"y": FLOAT, "bits": INT32})
    x = maps(3, 128, 28, 30)
    y, bits = layer.run(x)
    for path in ("", *usable_paths()):
        monkeypatch.setenv("ESBNN_BACKEND", path)
        for threads in (1, 3):
            got_y, got_bits = session_of(model, library, threads).run(None, {"x": x.permute(0, 2, 3, 1).numpy()})
            assert np.array_equal(got_y, y.permute(0, 2, 3, 1).numpy()) and np.array_equal(got_bits, bits.numpy())
    monkeypatch.setenv("ESBNN_BACKEND", "abacus")
    with pytest.raises(Exception, match=r"ESBNN_BACKEND must be one of .*portable.*, got abacus"):
        session_of(model, library)


def test_signs_of_rows_are_the_references(library: str) -> None:
    for channels, groups, shape in ((70, 2, (3, 5)), (32, 1, (4,)), (33, 1, (2, 1, 3)), (1024, 4, (50, 44))):
        shift = torch.randn(channels).mul(2).round() / 2
        stored = [onnx.numpy_helper.from_array(shift.numpy(), "shift")]
        node = onnx.helper.make_node("PackSign", ["x", "shift"], ["bits"], domain="esbnn", groups=groups)
        model = model_of([node], stored, FLOAT, [None] * len(shape) + [channels], {"bits": INT32})
        x = torch.randn(*shape, channels).mul(2).round() / 2
        for threads in (1, 3):
            (got,) = session_of(model, library, threads).run(None, {"x": x.numpy()})
            assert np.array_equal(got, reference.pack_sign(x, shift, groups, -1).numpy())
            assert got.shape == (*shape, words_of(channels, groups))


def broken() -> Iterator[tuple[str, str]]:
    """A change of a sound node, and the sentence of the refusal."""
    yield "channels=48", r"weight must have shape \(16, 3, 3, 2\), got \(16, 3, 3, 1\)"
    yield "groups=3", "groups must divide 32 channels and 16 filters, got 3"
    yield "copies=0", "copies must be from 1 to 2147483647, got 0"
    yield "pad_value=1", "pad_value must be from -1 to 0, got 1"
    yield "stride=[0,1]", "stride must be from 1 to 2147483647, got 0"
    yield "padding=[1]", "padding must have 2 numbers, got 1"
    yield "sign_groups=5", "sign_groups must divide 16 channels, got 5"
    yield "scale", r"scale must have shape \(16\), got \(15\)"


@pytest.mark.parametrize(("change", "sentence"), broken())
def test_a_node_that_does_not_fit_is_refused_in_one_sentence(change: str, sentence: str, library: str) -> None:
    layer = Layer(
        Geometry(32, padding=(1, 1)), Epilogue(torch.ones(16), torch.ones(16)), torch.zeros(16, 3, 3, 1).int(), None
    )
    if change == "scale":
        layer.epilogue = layer.epilogue._replace(scale=torch.ones(15))
    node, stored = layer.node("x", "y", "")
    name, _, value = change.partition("=")
    for attribute in list(node.attribute):
        if attribute.name == name:
            node.attribute.remove(attribute)
            node.attribute.append(onnx.helper.make_attribute(name, eval(value)))
    with pytest.raises(Exception, match=f"esbnn::BinaryConv2d: {sentence}"):
        session_of(model_of([node], stored, FLOAT, [None] * 4, {"y": FLOAT}), library)


def test_an_input_that_does_not_fit_is_refused_in_one_sentence(library: str) -> None:
    epilogue = Epilogue(torch.ones(16), torch.ones(16))
    layer = Layer(Geometry(32), epilogue, torch.zeros(16, 3, 3, 1).int(), None)
    node, stored = layer.node("x", "y", "")
    session = session_of(model_of([node], stored, FLOAT, [None] * 4, {"y": FLOAT}), library)
    for shape, sentence in (
        ((1, 5, 5, 31), r"x must have shape \(1, 5, 5, 32\), got \(1, 5, 5, 31\)"),
        ((1, 2, 5, 32), "x must be at least as large as the reach of the kernel, got 2x5 pixels"),
    ):
        with pytest.raises(Exception, match=f"esbnn::BinaryConv2d: {sentence}"):
            session.run(None, {"x": np.zeros(shape, np.float32)})
    assert session.run(None, {"x": np.zeros((0, 5, 5, 32), np.float32)})[0].shape == (0, 3, 3, 16)
    summed, stored = layer.node("x", "y", "", "r")
    model = model_of([summed], stored, FLOAT, [None] * 4, {"y": FLOAT})
    model.graph.input.append(onnx.helper.make_tensor_value_info("r", FLOAT, [None] * 4))
    beside = session_of(model, library)
    feed = {"x": np.zeros((1, 5, 5, 32), np.float32), "r": np.zeros((1, 3, 2, 16), np.float32)}
    with pytest.raises(Exception, match=r"residual must have shape \(1, 3, 3, 16\), got \(1, 3, 2, 16\)"):
        beside.run(None, feed)
    doubles = session_of(model_of([node], stored, onnx.TensorProto.DOUBLE, [None] * 4, {"y": FLOAT}), library)
    with pytest.raises(Exception, match="x must hold int32 values, got type 11"):
        doubles.run(None, {"x": np.zeros((1, 5, 5, 32))})


def test_a_weight_must_be_in_the_file(library: str) -> None:
    layer = Layer(Geometry(32), Epilogue(torch.ones(16), torch.ones(16)), torch.zeros(16, 3, 3, 1).int(), None)
    node, stored = layer.node("x", "y", "")
    given = onnx.helper.make_tensor_value_info("y.weight", INT32, [16, 3, 3, 1])
    model = model_of([node], stored[1:], FLOAT, [None] * 4, {"y": FLOAT})
    model.graph.input.append(given)
    with pytest.raises(Exception, match="weight must be an initializer"):
        session_of(model, library)
    with pytest.raises(InputError, match=r"must be stored in the file, got the value y\.weight that is computed"):
        standard_of(model)


@pytest.mark.parametrize("standard", [False, True])
@torch.no_grad()
def test_weights_of_a_wide_token_unit_are_in_the_file(standard: bool, library: str, tmp_path: Path) -> None:
    """More words than torch folds into the shape that a convolution reads; runtimes need not fold either."""
    torch.manual_seed(3)
    unit = pack_(stir(TokenUnit(512, 2048), 1))
    x, skip = torch.randn(2, 3, 512), torch.randn(2, 3, 2048)
    written = export_onnx(unit, tmp_path / "unit.onnx", (x, skip), standard=standard, dynamic=[(0,)] * 2)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(library)
    running = onnxruntime.InferenceSession(str(written.path), options, providers=["CPUExecutionProvider"])
    (got,) = running.run(None, dict(zip(written.inputs, (x.numpy(), skip.numpy()), strict=True)))
    assert np.array_equal(got, unit(x, skip).numpy())
