"""The CUDA kernels' own sources, compiled by g++ and run on an emulated device, against naive in every bit.

The emulator (tests/helpers/emulation) executes each thread of a block and the matrix instructions by PTX's documented
fragment layouts. It is no GPU: what it cannot show is listed in docs/reports/gpu.md.
"""

import ctypes
import itertools
import platform
from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError, create_model, kernels, pack_
from esbnn_core.kernels import ConvCall, Geometry, cpu, cuda, reference
from esbnn_core.kernels.cuda import launch
from esbnn_core.kernels.cuda.lanes import make_lanes
from esbnn_core.kernels.linear import long_row
from tests.helpers import paths
from tests.helpers.emulation import Emulator, build, convolve
from tests.helpers.networks import stir
from tests.helpers.operators import Args, drawn, in_words, layouts

TILES = {"Large": launch.LARGE, "Small": launch.SMALL}


@pytest.fixture(scope="session")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if platform.system() != "Linux":
        pytest.skip("the emulator's fibers are made for Linux")
    found = build(tmp_path_factory.mktemp("emulated"))
    if found is None:
        pytest.skip("no g++ here to compile the emulated kernels")
    return found


@pytest.fixture
def device(handle: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An emulated device that serves CPU tensors; naive is the other side of every comparison."""
    emulator = Emulator(handle)
    monkeypatch.setattr(cuda, "_serving", lambda *_: emulator)
    paths.force("naive", monkeypatch)
    return emulator


def equal(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    same = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))
    return same and got[0].movedim(1, -1).is_contiguous() and got[1].is_contiguous()


def compare(device: Emulator, arguments: Args, number: int, ways: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = torch.ops.esbnn.binary_conv2d(**arguments)
    lanes = cuda.lanes_of(arguments["weight"], arguments["groups"]) if number % 3 else None
    device.eager, device.backwards = bool(number & 1), bool(number & 2)
    for tile, path in ways:
        device.path = path
        monkeypatch.setattr(launch, "tile_for", lambda *_, tile=tile: TILES[tile])
        assert equal(convolve(arguments, lanes), want), (number, tile, path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_every_bit_of_the_operator_is_naives(part: int, device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(24 * part, 24 * part + 24):
        ways = [("Large", "Bits"), ("Small", "Bits"), (("Large", "Small")[number % 2], "Bytes")]
        compare(device, drawn(number), number, ways, monkeypatch)
    assert {kernel.tile for kernel in device.launched if kernel.function == "conv"} == set(TILES)


@pytest.mark.slow
def test_whole_words_and_wide_accesses(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(36):
        ways = [("Large", "Bits"), ("Small", "Bits"), (("Large", "Small")[number % 2], "Bytes")][number % 4 % 3 :]
        compare(device, in_words(number), number, ways, monkeypatch)
    steps = [kernel.steps for kernel in device.launched if kernel.function == "conv"]
    assert all(s & launch.WIDE for s in steps) and any(s & launch.WORDS for s in steps)
    assert {s >> launch.COPY_WORDS for s in steps} == {0, 1, 2}


def test_values_that_lie_askew_are_taken_one_by_one(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(x: Tensor) -> Tensor:
        flat = torch.empty(x.numel() + 1, dtype=x.dtype)[1:]
        return flat.view(x.shape).copy_(x)

    arguments = in_words(1) | {"residual": None}
    for name in ("x", "scale"):
        compare(device, arguments | {name: shifted(arguments[name])}, 1, [("Small", "Bits")], monkeypatch)
    first, second = (kernel.steps for kernel in device.launched if kernel.function == "conv")
    assert first & launch.WIDE and first >> launch.COPY_WORDS == 0 and not second & launch.WIDE


def test_the_widest_kernels_and_windows_beside_the_image(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    plain = dict.fromkeys(("scale", "bias", "prelu", "residual", "rprelu", "sign_shift"), None)
    for kernel, padding, stride in (((32, 1), (31, 0), 3), ((1, 32), (0, 40), 1), ((2, 3), (7, 9), 2)):
        arguments = {
            "x": kernels.pack_sign(torch.randn(1, 40, 9, 8, generator=g), None, 1, 1),
            "weight": kernels.pack_sign(torch.randn(6, 40, *kernel, generator=g), None, 1, 1),
            **{"channels": 40, "stride": (stride, stride), "padding": padding, "pad_value": 0, "dilation": (1, 1)},
            **{"groups": 1, "copies": 1, **plain, "sign_groups": 0, "shift": None, "out_dtype": None},
        }
        for pad_value in (0, -1):
            ways = [("Large", "Bits"), ("Small", "Bytes")]
            compare(device, arguments | {"pad_value": pad_value}, 1, ways, monkeypatch)


def test_a_tile_is_chosen_by_the_blocks_it_gives() -> None:
    assert launch.tile_for(256 * 3136, 64, 1, 132) == launch.LARGE
    assert launch.tile_for(49, 512, 1, 132) == launch.SMALL
    assert launch.tile_for(256 * 3136, 16, 1, 132) == launch.SMALL  # half of a large tile would be empty


@pytest.mark.slow
def test_packing_is_naives_for_every_layout(device: Emulator) -> None:
    g = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45])
    shapes = itertools.product((2, 34, 64, 150), ((1, 1), (3, 5), (9, 33)))
    for (channels, size), groups in zip(shapes, itertools.cycle((1, 2, 2, 1)), strict=False):
        x = torch.randn(2, channels, *size, generator=g)
        x.view(-1)[: len(special)] = special[: x.numel()]
        shift = torch.randn(channels, generator=g)
        for kind, shifted in ((torch.float32, None), (torch.float16, shift), (torch.bfloat16, shift)):
            for y in [*layouts(x.to(kind)), x.to(kind).expand(2, -1, -1, -1)]:
                for tensor, dim in ((y, 1), (y.movedim(1, -1), -1)):
                    want = reference.pack_sign(tensor, shifted, groups, dim)
                    got = cuda.pack_sign(tensor, shifted, groups, dim)
                    assert got is not None and torch.equal(got, want), (channels, size, groups, kind, dim)


def test_a_matrix_product_is_a_long_row(device: Emulator) -> None:
    g = torch.Generator().manual_seed(0)
    for rows, features, outer, groups, copies in ((5, 33, 7, 1, 1), (130, 256, 64, 2, 2), (1, 96, 40, 1, 3)):
        x = kernels.pack_sign(torch.randn(rows, 2, features * groups, generator=g), None, groups, -1)
        weight = kernels.pack_sign(torch.randn(outer * groups, features, generator=g), None, 1, -1)
        scale, bias = torch.randn(2, copies * groups * outer, generator=g)
        for affine in ((None, None), (scale, bias)):
            want = kernels.binary_linear(x, weight, features * groups, groups, copies, *affine)
            for lanes in (None, cuda.lanes_of(weight, groups)):
                call = long_row(x, weight, features * groups, groups, copies, *affine, lanes)
                done = cuda.binary_conv2d(call, call.output_size())
                assert done is not None and done[0].dtype == want.dtype
                assert torch.equal(done[0].permute(0, 2, 3, 1).reshape(want.shape), want)


@pytest.mark.parametrize("shape", [(8, 3, 3, 2, 1), (70, 1, 1, 5, 2), (96, 5, 3, 1, 3), (4, 3, 3, 9, 4)])
def test_lanes_are_those_of_torchs_operators(shape: tuple[int, ...], device: Emulator) -> None:
    *size, groups = shape
    g = torch.Generator().manual_seed(0)
    weight = torch.randint(-(2**31), 2**31, size, generator=g).int()
    device.launched.clear()
    assert torch.equal(cuda.lanes_of(weight, groups), make_lanes(weight, groups))
    flat = weight[:, 0, 0].clone()
    assert torch.equal(cuda.lanes_of(flat, groups), make_lanes(flat, groups))
    assert [kernel.name for kernel in device.launched] == ["lanes"] * 2


def test_lanes_made_elsewhere_are_made_again(device: Emulator) -> None:
    arguments = drawn(4)
    weight, groups = arguments["weight"], arguments["groups"]
    right = cuda.lanes_of(weight, groups)
    assert right is not None and equal(convolve(arguments, right), torch.ops.esbnn.binary_conv2d(**arguments))
    for wrong in (right.flatten(), right[:-1], torch.zeros(64, dtype=torch.int32)):
        assert equal(convolve(arguments, wrong), torch.ops.esbnn.binary_conv2d(**arguments))


def test_empty_batches_and_other_dtypes(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = drawn(2)
    empty = {key: arguments[key][:0] if arguments[key] is not None else None for key in ("x", "residual")}
    assert equal(convolve(arguments | empty), torch.ops.esbnn.binary_conv2d(**arguments | empty))
    assert cuda.pack_sign(torch.randn(2, 3, 4, 4).double(), None, 1, 1) is None
    large = arguments | {"weight": torch.zeros(4, 33, 1, 1, dtype=torch.int32), "scale": None, "bias": None}
    with pytest.raises(AssertionError, match="did not serve"):
        convolve(large | {"x": torch.zeros(1, 40, 40, 1, dtype=torch.int32), "groups": 1, "padding": (0, 0)})


def test_more_pixels_than_are_counted_are_refused_in_a_sentence(device: Emulator) -> None:
    weight = torch.zeros(4, 1, 1, 1, dtype=torch.int32)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.int32).expand(2, 2**15, 2**15, 1)
    with pytest.raises(
        InputError, match=r"x must have fewer than 2147483648 pixels .* got 2147483648: split the batch"
    ):
        cuda.binary_conv2d(ConvCall(x, weight, Geometry(1)), (2**15, 2**15))
    with pytest.raises(InputError, match="x must have fewer than 2147483648 pixels"):
        cuda.pack_sign(torch.zeros(1, 1, 1, 1).expand(2, 1, 2**15, 2**15).movedim(1, -1), None, 1, -1)


@torch.no_grad()
def test_whole_networks_give_the_cpus_logits(device: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pack_(stir(create_model("es_reactnet_resnet8", groups=2), 0))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want = model(x)
    for name in ("pack_sign", "binary_conv2d"):
        monkeypatch.setattr(cpu, name, getattr(cuda, name))
    assert torch.equal(model(x), want)
    assert sum(kernel.function == "conv" for kernel in device.launched) >= 6


def test_the_emulator_rounds_as_torch_does(handle: ctypes.CDLL) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (200_000,), generator=g).int().view(torch.float32)
    edges = torch.tensor([65519.0, 65520.0, 65504.0, 2**-24, 2**-25, 2**-25 * 1.0001, 2**-14, 0.0, -0.0, 1e38, 3.4e38])
    x = torch.cat([x, edges, -edges, torch.randn(20_000, generator=g), 2**-15 * torch.randn(20_000, generator=g)])
    for kind, dtype in ((1, torch.float16), (2, torch.bfloat16)):
        out = torch.empty_like(x)
        handle.emulate_rounding(ctypes.c_void_p(x.data_ptr()), len(x), kind, ctypes.c_void_p(out.data_ptr()))
        torch.testing.assert_close(out, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
