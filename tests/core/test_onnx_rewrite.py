"""Real steps of an ONNX file as fewer operators: each against float64, and networks with and without them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import pack_
from esbnn_core.layers import Expansion
from esbnn_core.models.bnext import BNextBlock
from esbnn_core.models.parts import resnet_stem
from esbnn_core.units import BinaryUnit
from tests.helpers.networks import annealed, stir

pytest.importorskip("onnxruntime")
import onnx
import onnxruntime
from onnx import helper

from esbnn_core.onnx import export_onnx, operators_library, session

pytestmark = pytest.mark.usefixtures("exporter_repeats_nothing")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(kind: str, inputs: dict[str, Tensor | None], threads: int = 1, **attributes: int) -> Tensor:
    """One node of the domain on these inputs, None for one that is left out."""
    given = {name: t for name, t in inputs.items() if t is not None}
    node = helper.make_node(
        kind, [name if name in given else "" for name in inputs], ["y"], domain="esbnn", **attributes
    )
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(t.shape)) for name, t in given.items()]
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("esbnn", 1)]
    model = helper.make_model(helper.make_graph([node], "one", infos, [y]), opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(operators_library()))
    running = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(running.run(None, {name: t.numpy() for name, t in given.items()})[0])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("steps", ["", "s", "g", "p", "fr", "sgpfr", "sgr"])
@pytest.mark.parametrize(("channels", "copies"), [(64, 1), (5, 3), (33, 2)])
def test_a_tail_is_its_steps(steps: str, channels: int, copies: int, threads: int) -> None:
    n, h, w, out = 2, 9, 7, channels * copies

    def maybe(step: str, *shape: int) -> Tensor | None:
        return drawn(*shape, seed=ord(step)) if step in steps else None

    inputs = {
        "x": drawn(n, h, w, channels),
        "scale": maybe("s", out),
        "bias": None if "s" not in steps else drawn(out, seed=9),
        "slope": maybe("p", out),
        "gate": maybe("g", n, 1, 1, out),
        "factor": maybe("f", n, h, w, out),
        "residual": maybe("r", n, h, w, out),
    }
    got = run("Tail", inputs, threads, copies=copies)
    t = {name: None if v is None else v.double() for name, v in inputs.items()}
    want = t["x"].repeat(1, 1, 1, copies)  # type: ignore[union-attr]
    for name in ("gate", "factor"):
        want = want if t[name] is None else want * t[name]
    want = want if t["scale"] is None else want * t["scale"] + t["bias"]
    want = want if t["slope"] is None else torch.where(want > 0, want, want * t["slope"])
    want = want if t["residual"] is None else want + t["residual"]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 33, 41, 64), (1, 1, 1, 5), (3, 7, 7, 130)])
def test_means_are_exact_to_a_few_roundings(shape: tuple[int, ...]) -> None:
    x = drawn(*shape) + 3
    want = x.double().mean((1, 2), keepdim=True)
    torch.testing.assert_close(run("Means", {"x": x}).double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("side", "shape"), [(2, (2, 7, 9, 20)), (3, (1, 6, 4, 70)), (2, (1, 8, 8, 64))])
def test_windows_are_cut_where_the_image_ends(side: int, shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    want = F.avg_pool2d(x.permute(0, 3, 1, 2).double(), side, ceil_mode=True, count_include_pad=False)
    got = run("AveragePool", {"x": x}, 2, side=side).permute(0, 3, 1, 2)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    x = drawn(2, 3, 4, 5)
    for inputs, sentence in (
        ({"x": x, "scale": drawn(5)}, "scale and bias go together"),
        ({"x": x, "scale": drawn(4), "bias": drawn(5)}, r"scale must have shape \(5\), got \(4\)"),
        ({"x": x, "scale": None, "bias": None, "slope": None, "gate": drawn(2, 1, 3, 5)}, "gate must have shape"),
        ({"x": x[0]}, "x must have 4 dimensions"),
    ):
        with pytest.raises(Exception, match=sentence):
            run("Tail", inputs, copies=1)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="x must have pixels"):
        run("Means", {"x": drawn(1, 0, 2, 3)})


def packed(model: nn.Module) -> nn.Module:
    return pack_(stir(annealed(model)))


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def check_outputs(path: Path, network: nn.Module, name: str = "images") -> None:
    """Two sizes and batches, against the packed network: a sign that turns would be far outside."""
    running = session(path, threads=1)
    for shape in ((2, 3, 22, 24), (1, 3, 27, 35)):
        x = drawn(*shape)
        with torch.no_grad():
            want = network(x)
        got = torch.from_numpy(running.run(None, {name: x.numpy()})[0])
        assert got.shape == want.shape and (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("tau", [1, 2])
def test_gates_norms_and_slopes_are_one_operator(tau: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = BNextBlock(32, 64, 2, True, True, Expansion(tau, 1), "block")
    network = packed(nn.Sequential(nn.Conv2d(3, tau * 32, 3), block))
    export_onnx(network, tmp_path / "net.onnx", (drawn(2, 3, 22, 24),))
    found = kinds(tmp_path / "net.onnx")
    # a tail for each of the three units, and one for the PReLU of the first
    assert found.count("Sigmoid") == 3 and found.count("Tail") == 4
    # the unit of stride 2 pools its input with PReLU and without
    assert found.count("AveragePool") == 2 and found.count("Means") == 5
    assert not {"PRelu", "BatchNormalization"} & set(found)
    check_outputs(tmp_path / "net.onnx", network)


@pytest.mark.slow
@pytest.mark.parametrize("negative", [False, True])
def test_a_pool_goes_before_the_copies_where_no_factor_is_negative(negative: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    expansion = Expansion(2, 1)
    stem = resnet_stem("imagenet", 3, 16, expansion, True)
    network = packed(nn.Sequential(stem, BinaryUnit(16, 16, expansion=expansion)))
    with torch.no_grad():
        network[0].norm.weight.abs_()  # type: ignore[operator, union-attr]
        if negative:
            network[0].norm.weight[20] *= -1  # type: ignore[index, union-attr]
    export_onnx(network, tmp_path / "net.onnx", (drawn(2, 3, 22, 24),))
    found = kinds(tmp_path / "net.onnx")
    order = [node for node in found if node in ("MaxPool", "Tail")]
    assert order == (["Tail", "MaxPool"] if negative else ["MaxPool", "Tail"])
    assert not {"BatchNormalization", "Concat"} & set(found)
    check_outputs(tmp_path / "net.onnx", network)
