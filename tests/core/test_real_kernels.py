"""Our own real kernels: max-pooling as torch's in every bit, convolutions against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.kernels.cpu.real import RealFilters, Window, max_pool2d, real_conv2d, real_lanes
from esbnn_core.packed import PackedMaxPool2d
from tests.helpers import paths
from tests.helpers.operators import layouts

NATIVE = [name for name in paths.usable() if name != "naive"]
ONES = Window((1, 1), (1, 1), (0, 0))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filters_of(weight: Tensor, bias: Tensor) -> RealFilters:
    return RealFilters(*real_lanes(weight, bias), len(weight))


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((2, 64, 9, 12), Window((3, 3), (2, 2), (1, 1))),
        ((1, 20, 7, 5), Window((2, 3), (1, 2), (1, 0))),
        ((3, 1, 4, 4), Window((4, 4), (4, 4), (2, 2))),
        ((1, 130, 6, 6), Window((5, 2), (3, 1), (0, 1))),
    ],
)
def test_pooling_is_torchs_in_every_bit(
    path: str, shape: tuple[int, ...], window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.force(path, monkeypatch)
    x = drawn(*shape)
    x.view(-1)[::5] = -torch.inf
    x.view(-1)[::7] = 0.0
    x.view(-1)[::11] = -0.0
    x.view(-1)[::29] = torch.nan
    for view in layouts(x):
        want = F.max_pool2d(view, *window)
        got = max_pool2d(view, window)
        assert got is not None and torch.equal(got.isnan(), want.isnan()) and want.isnan().any()
        assert torch.equal(got.nan_to_num(7).view(torch.int32), want.nan_to_num(7).view(torch.int32))
    last = x.to(memory_format=torch.channels_last)
    for view in (x, last):
        got = max_pool2d(view, window)
        assert got is not None and got.is_contiguous() == F.max_pool2d(view, *window).is_contiguous()


def test_the_pooling_module_leaves_to_torch_what_is_torchs() -> None:
    kept: list[Any] = [
        torch.nn.MaxPool2d(2, ceil_mode=True),
        torch.nn.MaxPool2d(2, return_indices=True),
        torch.nn.MaxPool2d(2, dilation=2),
        torch.nn.AvgPool2d(2),
    ]
    assert [PackedMaxPool2d.of(module) for module in kept] == [None] * 4
    pool = PackedMaxPool2d.of(torch.nn.MaxPool2d(3, 2, 1))
    assert pool is not None
    x = drawn(2, 5, 8, 9)
    for each in (x, x.double(), x.bfloat16(), x[0]):
        assert torch.equal(pool(each), F.max_pool2d(each, 3, 2, 1))
    wanted = x.clone().requires_grad_()
    pool(wanted).sum().backward()
    other = x.clone().requires_grad_()
    F.max_pool2d(other, 3, 2, 1).sum().backward()
    assert wanted.grad is not None and other.grad is not None and torch.equal(wanted.grad, other.grad)
    for size in ((1, 1), (2, 2)):
        with pytest.raises(RuntimeError, match=r"Output size is too small|pad should be at most half"):
            PackedMaxPool2d(4, 4, 3 if size == (2, 2) else 0)(drawn(1, 3, *size))


@pytest.mark.parametrize("path", [name for name in NATIVE if name != "portable"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "out", "window", "pool"),
    [
        ((2, 3, 33, 41), 64, Window((7, 7), (2, 2), (3, 3)), Window((3, 3), (2, 2), (1, 1))),
        ((1, 5, 9, 7), 33, ONES, Window((2, 2), (2, 2), (0, 0))),
        ((1, 40, 14, 14), 130, ONES, Window((5, 5), (6, 6), (0, 0))),
        ((3, 4, 8, 9), 70, Window((3, 1), (1, 2), (1, 0)), Window((3, 2), (1, 1), (1, 1))),
        ((1, 16, 12, 3), 16, Window((3, 3), (2, 1), (0, 1)), Window((2, 2), (3, 3), (1, 1))),
    ],
)
def test_convolutions_are_within_their_sums_of_rounding(
    path: str, threads: int, shape: Any, out: int, window: Window, pool: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.force(path, monkeypatch)
    x, weight, bias = drawn(*shape), drawn(out, shape[1], *window.kernel, seed=1), drawn(out, seed=2)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), window.stride, window.padding)
    # each of the sums has at most K + 1 roundings of half a last digit of the sum of absolute products
    size = F.conv2d(x.abs(), weight.abs(), bias.abs(), window.stride, window.padding)
    bound = (weight[0].numel() + 1) * 2.0**-24 * size
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        filters = filters_of(weight, bias)
        got = [real_conv2d(view, filters, window) for view in layouts(x)]
        assert got[0] is not None and all(torch.equal(got[0], other) for other in got if other is not None)
        assert got[0].is_contiguous(memory_format=torch.channels_last)
        assert ((got[0] - exact).abs() <= bound).all()
        pooled = real_conv2d(x, filters, window, pool)
        want = F.max_pool2d(got[0], *pool)
        assert pooled is not None and torch.equal(pooled, want)
        scale, offset = drawn(3 * out, seed=3), drawn(3 * out, seed=4)
        copied = real_conv2d(x, filters, window, pool, (scale, offset))
        affine = want.repeat(1, 3, 1, 1) * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
        assert copied is not None
        torch.testing.assert_close(copied, affine, rtol=2e-6, atol=2e-6)
    finally:
        torch.set_num_threads(before)


def test_what_the_library_does_not_serve_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, filters = drawn(1, 3, 8, 8), filters_of(drawn(4, 3, 3, 3), drawn(4))
    window = Window((3, 3), (1, 1), (0, 0))
    assert real_conv2d(x.double(), filters, window) is None
    assert real_conv2d(x[:, :, :2], filters, window) is None  # no place for the kernel
    assert max_pool2d(x.double(), window) is None and max_pool2d(x[:, :, :2], window) is None
    assert max_pool2d(x, Window((3, 3), (1, 1), (2, 2))) is None
    paths.force("naive", monkeypatch)
    assert real_conv2d(x, filters, window) is None and max_pool2d(x, window) is None
