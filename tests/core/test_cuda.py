"""The CUDA kernels on a GPU against the CPU's operators, in every bit; skipped where there is no GPU.

What is checked without one: tests/core/test_cuda_compile.py and test_cuda_arithmetic.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError, create_model, kernels, pack_
from esbnn_core.kernels import ConvCall, Geometry, cuda, reference
from esbnn_core.kernels.cuda import launch
from tests.helpers.emulation import convolve
from tests.helpers.networks import annealed, stir
from tests.helpers.operators import KINDS, drawn, in_words, layouts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: make gpu-check runs this on one")

Args = dict[str, Any]
ONE = (1, 1)


@pytest.fixture(scope="module", autouse=True)
def served() -> None:
    """All of this is about the kernels: a GPU that they do not serve is a failure here, with its reason."""
    gpu, status = cuda.choose()
    assert gpu is not None, status.reason


def moved(arguments: Args) -> Args:
    """The same on the GPU; a tensor keeps its strides."""

    def move(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
        return y.copy_(x)

    return {name: move(value) for name, value in arguments.items()}


def equal(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    same = all(a.dtype == b.dtype and torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    return same and got[0].movedim(1, -1).is_contiguous() and got[1].is_contiguous()


def block(batch: int, side: int, channels: int, kernel: int, number: int = 0) -> Args:
    """A ReActNet block on packed bits, bfloat16 in and out, with all steps."""
    g = torch.Generator().manual_seed(number)
    residual = torch.randn(batch, channels, side, side, generator=g).bfloat16()
    scale, bias, prelu, shift = torch.randn(4, channels, generator=g)
    return {
        "x": torch.randint(-(2**31), 2**31, (batch, side, side, channels // 32), generator=g).int(),
        "weight": torch.randint(-(2**31), 2**31, (channels, kernel, kernel, channels // 32), generator=g).int(),
        **{"channels": channels, "stride": ONE, "padding": (kernel // 2,) * 2, "pad_value": 0, "dilation": ONE},
        **{"groups": 1, "copies": 1, "scale": scale, "bias": bias, "prelu": prelu},
        "residual": residual.to(memory_format=torch.channels_last),
        **{"rprelu": torch.randn(3, channels, generator=g), "sign_shift": shift, "sign_groups": 1},
        **{"shift": None, "out_dtype": torch.bfloat16},
    }


@pytest.mark.parametrize("part", range(6))
def test_every_bit_is_the_cpus(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50 * part, 50 * part + 50):
        # one kernel for all steps and one a set of steps: the first spares the compiler's time
        for special, arguments in ((number % 10 == 0, drawn(number)), (number % 5 == 0, in_words(number))):
            monkeypatch.setattr(launch, "SPECIALISED", special)
            want, there = torch.ops.esbnn.binary_conv2d(**arguments), moved(arguments)
            lanes = cuda.lanes_of(there["weight"], there["groups"]) if number % 3 else None
            for tile in (launch.LARGE, launch.SMALL):
                monkeypatch.setattr(launch, "tile_for", lambda *_, tile=tile: tile)
                assert equal(convolve(there, lanes), want), (number, special, tile)


@pytest.mark.parametrize(
    "shape", [(64, 56, 64, 3), (64, 28, 128, 3), (64, 14, 256, 3), (64, 7, 512, 3), (32, 14, 512, 1)]
)
def test_full_tiles_are_right_and_the_same_every_time(shape: tuple[int, int, int, int]) -> None:
    arguments = block(*shape)
    there, want = moved(arguments), torch.ops.esbnn.binary_conv2d(**arguments)
    first = convolve(there)
    assert equal(first, want)
    for _ in range(20):
        again = convolve(there)
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])


def test_packing_is_naives_for_every_layout() -> None:
    g = torch.Generator().manual_seed(0)
    for channels, side in ((2, 3), (34, 9), (64, 33), (150, 17), (256, 14)):
        shift = torch.randn(channels, generator=g)
        for kind in KINDS:
            x = torch.randn(4, channels, side, side, generator=g).to(kind)
            x.view(-1)[:3] = torch.tensor([0.0, -0.0, float("nan")]).to(kind)
            for y in layouts(x):
                there = moved({"y": y, "shift": shift})
                for shifted in (None, shift):
                    got = cuda.pack_sign(there["y"], None if shifted is None else there["shift"], 2, 1)
                    assert got is not None and torch.equal(got.cpu(), reference.pack_sign(y, shifted, 2, 1))


def test_a_graph_replays_with_new_inputs() -> None:
    one, other = block(4, 14, 256, 3), block(4, 14, 256, 3, number=1)
    there = moved(one)
    lanes = cuda.lanes_of(there["weight"], 1)
    convolve(there, lanes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, bits = convolve(there, lanes)
    for inputs in (other, one):
        for name in ("x", "residual"):
            there[name].copy_(inputs[name])
        graph.replay()
        assert equal(
            (y, bits), torch.ops.esbnn.binary_conv2d(**one | {name: inputs[name] for name in ("x", "residual")})
        )


def test_a_kernel_first_met_in_a_capture_is_named() -> None:
    there = moved(block(1, 5, 96, 3) | {"sign_groups": 0, "sign_shift": None, "out_dtype": torch.float16})
    lanes, graph = cuda.lanes_of(there["weight"], 1), torch.cuda.CUDAGraph()
    with pytest.raises(InputError, match="must be loaded before the capture of a CUDA graph"), torch.cuda.graph(graph):
        convolve(there, lanes)


def test_it_runs_on_the_current_stream() -> None:
    arguments = block(32, 28, 128, 3)
    there, want = moved(arguments), torch.ops.esbnn.binary_conv2d(**arguments)
    side = torch.cuda.Stream()
    late = torch.zeros_like(there["x"])
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # on another stream the convolution would read zeros
        late.copy_(there["x"])
        got = convolve(there | {"x": late})
    side.synchronize()
    assert equal(got, want)


def test_more_pixels_than_are_counted_are_refused() -> None:
    x = torch.zeros(1, 1, 1, 1, dtype=torch.int32, device="cuda").expand(2, 2**15, 2**15, 1)
    weight = torch.zeros(4, 1, 1, 1, dtype=torch.int32, device="cuda")
    with pytest.raises(InputError, match="split the batch"):
        cuda.binary_conv2d(ConvCall(x, weight, Geometry(1)), (2**15, 2**15))


def test_values_past_two_to_the_31_are_found() -> None:
    """y has 2.2e9 values in 4.4 GB: a 32-bit place would wrap."""
    channels, side, batch = 512, 512, 17
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("less than 12 GB of device memory are free")
    arguments = block(1, side, channels, 1) | {"residual": None, "sign_groups": 0, "sign_shift": None}
    there, want = moved(arguments), torch.ops.esbnn.binary_conv2d(**arguments)
    y, _ = convolve(there | {"x": there["x"].expand(batch, -1, -1, -1)})
    assert y.numel() > 2**31 and torch.equal(y[-1].cpu(), want[0][0])
    y.fill_(-1.0)[-1].fill_(1.0)
    bits = cuda.pack_sign(y, None, 1, 1)
    assert bits is not None and bits[-1].eq(-1).all() and not bits[:-1].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["reactnet_resnet18", "es_bnext_tiny"])
def test_the_packed_layers_of_a_network_give_the_cpus_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # real layers differ between devices, and a sign behind them may turn: each packed call is compared on its own
    calls: list[tuple[dict[str, Any], tuple[Tensor, Tensor]]] = []
    own = kernels.binary_conv2d

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor]:
        call = ConvCall(*arguments)
        named = {"x": call.x, "weight": call.weight, "shift": call.shift}
        calls.append((named | call.geometry._asdict() | call.epilogue._asdict(), own(*arguments)))
        return calls[-1][1]

    model = pack_(annealed(stir(create_model(name), 0)))
    monkeypatch.setattr(kernels, "binary_conv2d", recorded)
    model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert len(calls) > 10
    for arguments, want in calls:
        assert equal(convolve(moved(arguments)), want)


@torch.no_grad()
def test_the_operators_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    own = cuda.binary_conv2d
    monkeypatch.setattr(cuda, "binary_conv2d", lambda *a, **k: reached.append(1) or own(*a, **k))
    arguments = block(2, 7, 64, 3)
    assert equal(torch.ops.esbnn.binary_conv2d(**moved(arguments)), torch.ops.esbnn.binary_conv2d(**arguments))
    assert reached == [1]
    lanes = kernels.lanes_of(moved(arguments)["weight"], 1)
    assert lanes is not None and lanes.shape[1:] == (8,)
    model, x = pack_(stir(create_model("reactnet_resnet8"), 0)), torch.randn(4, 3, 32, 32)
    close = (model(x) - model.cuda()(x.cuda()).cpu()).abs()
    assert len(reached) > 6 and close.median() < 1e-2 * model(x.cuda()).abs().max()
