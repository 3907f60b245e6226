"""Packed operators: epilogue, memory layout, by every implementation."""

import pytest
import torch

from esbnn_core import kernels
from esbnn_core.kernels import reference
from tests.helpers import paths
from tests.helpers.operators import STEPS, call, conv_arguments, gen, linear_arguments


@pytest.fixture(params=paths.ALL, autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.force(request.param, monkeypatch)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [1, 4])
def test_the_epilogue_is_these_steps_in_this_order(steps: str, dtype: torch.dtype, copies: int) -> None:
    a = conv_arguments(steps, copies=copies, dtype=dtype, seed=len(steps))
    total = call({**conv_arguments("", copies=1, dtype=dtype, seed=len(steps))})[0]
    assert total.dtype == torch.int32
    y = torch.cat([total] * copies, 1)
    if "a" in steps:
        y = y.to(dtype) * a["scale"].view(-1, 1, 1)
        y = y + a["bias"].view(-1, 1, 1)
    if "p" in steps:
        y = torch.where(y >= 0, y, a["prelu"].view(-1, 1, 1) * y)
    if "r" in steps:
        y = y + a["residual"]
    if "q" in steps:
        y = y + a["rprelu"][0].view(-1, 1, 1)
        y = torch.where(y >= 0, y, a["rprelu"][1].view(-1, 1, 1) * y)
        y = y + a["rprelu"][2].view(-1, 1, 1)
    got, bits = call(a)
    assert got.dtype == y.dtype and torch.equal(got, y)
    if "s" not in steps:
        assert bits.shape == (0,) and bits.dtype == torch.int32
        return
    moved = y + a["sign_shift"].view(-1, 1, 1) if "t" in steps else y
    assert bits.is_contiguous() and torch.equal(bits, kernels.pack_sign(moved, None, 2, 1))
    out = 6 * copies
    half = reference.unpack_bits(bits.unflatten(-1, (2, -1)), out // 2).flatten(-2)
    assert torch.equal(half, (moved >= 0).permute(0, 2, 3, 1))


@pytest.mark.parametrize(("filters", "copies"), [(8, 4), (4, 4), (2, 16), (1, 16), (8, 3), (5, 4), (24, 4)])
def test_copies_of_few_filters_share_vectors(filters: int, copies: int) -> None:
    for steps, pad_value in (("", 0), ("as", -1), ("aprqst", 0)):
        a = conv_arguments(steps, groups=1, filters=filters, copies=copies, size=(2, 9, 11), pad_value=pad_value)
        got = call(a)
        with paths.forced("naive"):
            want = call(a)
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True)), (steps, pad_value)


def test_bits_of_one_layer_feed_the_next() -> None:
    first = conv_arguments("aqst", copies=4, filters=10, channels=34)
    y, bits = call(first)
    second = conv_arguments("a", channels=40, groups=2)
    through_bits = call({**second, "x": bits})[0]
    through_floats = call({**second, "x": kernels.pack_sign(y, first["sign_shift"], 2, 1)})[0]
    assert torch.equal(through_bits, through_floats)
    assert not torch.equal(bits, kernels.pack_sign(y, None, 2, 1))


@pytest.mark.parametrize("size", [(3, 7, 5), (1, 3, 4), (2, 1, 1), (1, 1, 6)])
@pytest.mark.parametrize("steps", ["", "ar", "aprqst"])
def test_outputs_lie_in_channels_last(size: tuple[int, int, int], steps: str) -> None:
    y, bits = call(conv_arguments(steps, size=size))
    n, c, h, w = y.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    for side, stride, want in zip(y.shape, y.stride(), (h * w * c, 1, w * c, c), strict=True):
        assert stride == want or side == 1
    assert (n, h, w) == size
    if "s" in steps:
        assert bits.shape == (n, h, w, kernels.words_of(c, 2)) and bits.is_contiguous()


@pytest.mark.parametrize("chunk", [1, 7, 300, 10**9])
def test_the_walk_over_the_batch_does_not_show(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a = conv_arguments("aprqst", size=(5, 6, 6))
    want = call(a)
    monkeypatch.setattr(reference, "CHUNK", chunk)
    for got, wanted in zip(call(a), want, strict=True):
        assert torch.equal(got, wanted)


def test_an_empty_batch_gives_an_empty_output() -> None:
    a = conv_arguments("as")
    y, bits = call({**a, "x": a["x"][:0]})
    assert y.shape == (0, 12, 7, 5) and bits.shape == (0, 7, 5, 2)


def test_pack_sign_adds_the_shift_before_the_sign() -> None:
    x = torch.randn(2, 37, 3, 3, generator=gen(0))
    shift = -x[0, :, 1, 1]
    bits = reference.unpack_bits(kernels.pack_sign(x, shift, 1, 1), 37)
    assert torch.equal(bits, (x + shift.view(-1, 1, 1) >= 0).permute(0, 2, 3, 1))
    assert bits[0, 1, 1].all()  # x + shift = 0 is +1
    assert torch.equal(kernels.pack_sign(x.movedim(1, -1), shift, 1, -1), kernels.pack_sign(x, shift, 1, 1))
    assert torch.equal(
        kernels.pack_sign(x.to(memory_format=torch.channels_last), shift, 1, 1), kernels.pack_sign(x, shift, 1, 1)
    )


@pytest.mark.parametrize("copies", [1, 3])
def test_the_affine_of_the_product(copies: int) -> None:
    a = linear_arguments(copies, True)
    assert torch.equal(kernels.binary_linear(*a), kernels.binary_linear(*linear_arguments(copies)) * a[5] + a[6])
