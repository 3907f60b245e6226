"""Our own real kernels: max-pooling as torch's in every bit, convolutions against float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.kernels.cpu.real import RealFilters, Window, max_pool2d, real_conv2d, real_lanes, real_linear
from esbnn_core.kernels.cpu.real_steps import Mean, average_pool2d, means, tiled_affine
from esbnn_core.packed import FoldedMean, PackedAvgPool2d, PackedMaxPool2d
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


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "mean"),
    [
        ((2, 64, 9, 12), Mean((2, 2), (2, 2), True)),
        ((1, 20, 7, 5), Mean((3, 2), (1, 2), False)),
        ((3, 17, 8, 8), Mean((3, 3), (2, 2), True)),
        ((1, 40, 6, 1), Mean((5, 1), (4, 3), True)),
        ((1, 33, 4, 4), Mean((2, 2), (3, 3), True)),  # whose last window would begin outside
    ],
)
def test_means_over_windows_are_torchs_in_every_bit(
    path: str, threads: int, shape: tuple[int, ...], mean: Mean, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.force(path, monkeypatch)
    x = drawn(*shape)
    x.view(-1)[::7] = -0.0
    x.view(-1)[::11] = torch.inf
    x.view(-1)[::29] = torch.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        last = x.to(memory_format=torch.channels_last)
        assert [average_pool2d(view, mean) for view in layouts(x) if view.stride() != last.stride()] == [None] * 4
        for view in layouts(x)[:2]:
            for include in (False, True):  # makes no difference without padding
                want = F.avg_pool2d(view, mean.kernel, mean.stride, 0, mean.ceil, include)
                got = average_pool2d(last, mean)
                assert got is not None and got.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(got.isnan(), want.isnan()) and 0 < want.isnan().sum() < want.numel()
                assert torch.equal(got.nan_to_num(7).view(torch.int32), want.nan_to_num(7).view(torch.int32))
    finally:
        torch.set_num_threads(before)


def test_the_mean_modules_leave_to_torch_what_is_torchs() -> None:
    kept: list[Any] = [
        torch.nn.AvgPool2d(2, padding=1),
        torch.nn.AvgPool2d(2, divisor_override=3),
        torch.nn.MaxPool2d(2),
    ]
    assert [PackedAvgPool2d.of(module) for module in kept] == [None] * 3
    other: list[Any] = [torch.nn.AdaptiveAvgPool2d(2), torch.nn.AdaptiveAvgPool2d((1, None)), torch.nn.AvgPool2d(2)]
    assert [FoldedMean.of(module) for module in other] == [None] * 3
    pool, mean = (
        PackedAvgPool2d.of(torch.nn.AvgPool2d(3, 2, ceil_mode=True)),
        FoldedMean.of(torch.nn.AdaptiveAvgPool2d(1)),
    )
    assert pool is not None and mean is not None
    x = drawn(2, 5, 8, 9)
    for each in (x, x.double(), x.bfloat16(), x[0]):
        assert torch.equal(pool(each), F.avg_pool2d(each, 3, 2, ceil_mode=True))
    for each in (x.double(), x.bfloat16(), x[0]):
        assert torch.equal(mean(each), F.adaptive_avg_pool2d(each, 1))
    for module, plain in ((pool, torch.nn.AvgPool2d(3, 2, ceil_mode=True)), (mean, torch.nn.AdaptiveAvgPool2d(1))):
        wanted, other_x = x.clone().requires_grad_(), x.clone().requires_grad_()
        module(wanted).sum().backward()
        plain(other_x).sum().backward()
        assert wanted.grad is not None and other_x.grad is not None and torch.equal(wanted.grad, other_x.grad)
    with pytest.raises(RuntimeError, match="Output size is too small"):
        PackedAvgPool2d(4)(drawn(1, 3, 2, 2))


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("shape", [(2, 64, 7, 7), (3, 17, 1, 1), (1, 5, 20, 13)])
def test_means_copies_and_rows_are_within_their_rounding(
    path: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.force(path, monkeypatch)
    x, channels = drawn(*shape), shape[1]
    exact = x.double().mean((2, 3), keepdim=True)
    scale, offset = drawn(3 * channels, seed=1), drawn(3 * channels, seed=2)
    copies = x.double().repeat(1, 3, 1, 1) * scale.double().view(1, -1, 1, 1) + offset.double().view(1, -1, 1, 1)
    for view in layouts(x):
        got, tiled = means(view), tiled_affine(view, scale, offset)
        assert got is not None and tiled is not None and tiled.is_contiguous(memory_format=torch.channels_last)
        # sums of 64 pixels at the most, then the last rounding
        assert ((got - exact).abs() <= 65 * 2.0**-24 * x.abs().mean((2, 3), keepdim=True)).all()
        assert ((tiled - copies).abs() <= 2.0**-23 * (copies.abs() + 2 * offset.abs().view(1, -1, 1, 1))).all()
    rows, weight, bias = (
        x.flatten(1)[:, : 2 * channels],
        drawn(21, min(2 * channels, x[0].numel()), seed=3),
        drawn(21, seed=4),
    )
    got = real_linear(rows, filters_of(weight[:, :, None, None], bias))
    assert (got is None) is (path == "portable")
    if got is not None:
        size = rows.abs().double() @ weight.abs().double().t() + bias.abs()
        wanted = rows.double() @ weight.double().t() + bias
        assert got.is_contiguous() and ((got - wanted).abs() <= (weight.shape[1] + 1) * 2.0**-24 * size).all()
