"""A max-pooling that goes before the norm: the numbers of the other order in every bit, or the other order itself."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import create_model, pack_
from esbnn_core.kernels.cpu.real import Norm, Window, pool_before_norm
from esbnn_core.layers import BinaryConv2d, Tile
from esbnn_core.packed import PackedMaxPool2d, PackedStem, stem
from tests.helpers import paths
from tests.helpers.networks import stir
from tests.helpers.operators import layouts

NATIVE = [name for name in paths.usable() if name != "naive"]
LAST = torch.channels_last
if not NATIVE:
    pytest.skip("no native library", allow_module_level=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn_norm(channels: int, seed: int = 0, **options: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options).eval()
    tensors = [norm.running_mean, norm.weight, norm.bias]
    with torch.no_grad():
        for number, tensor in enumerate(t for t in tensors if t is not None):
            tensor.copy_(drawn(channels, seed=seed + number))
        assert norm.running_var is not None
        norm.running_var.copy_(drawn(channels, seed=seed + 9).exp())
    return norm


def of(norm: nn.BatchNorm2d) -> Norm:
    assert norm.running_mean is not None and norm.running_var is not None
    return Norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "copies", "window", "affine"),
    [
        ((2, 64, 23, 18), 1, Window((3, 3), (2, 2), (1, 1)), True),
        ((1, 16, 9, 14), 3, Window((3, 3), (2, 2), (1, 1)), True),
        ((2, 48, 7, 8), 2, Window((2, 3), (1, 2), (1, 0)), False),
        ((1, 32, 12, 5), 1, Window((5, 2), (3, 1), (0, 1)), True),
    ],
)
@torch.no_grad()
def test_it_is_the_pooling_after_the_norm_in_every_bit(
    path: str,
    threads: int,
    shape: tuple[int, ...],
    copies: int,
    window: Window,
    affine: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths.force(path, monkeypatch)
    x = drawn(*shape).to(memory_format=LAST)
    x[:, :, ::3, ::2] = x[:, :, :1, :1]  # equal values
    norm = drawn_norm(copies * shape[1], affine=affine)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        want = nn.functional.max_pool2d(norm(x.repeat(1, copies, 1, 1).contiguous(memory_format=LAST)), *window)
        pooled = pool_before_norm(x, window, of(norm))
        assert pooled is not None and pooled.shape == want.shape
        assert torch.equal(bits(norm(pooled)), bits(want))
        if affine:  # all factors positive, and norms as they start
            norm.weight.abs_()
            norm.bias.zero_()
            norm.running_mean.zero_()  # type: ignore[union-attr]
            want = nn.functional.max_pool2d(norm(x.repeat(1, copies, 1, 1).contiguous(memory_format=LAST)), *window)
            pooled = pool_before_norm(x, window, of(norm))
            assert pooled is not None and torch.equal(bits(norm(pooled)), bits(want))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("path", NATIVE)
@torch.no_grad()
def test_it_is_refused_where_a_bit_might_differ(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.force(path, monkeypatch)
    window, x = Window((2, 2), (2, 2), (0, 0)), drawn(2, 16, 6, 8).to(memory_format=LAST)

    def found(x: Tensor, **tensors: float | None) -> bool:
        norm = of(drawn_norm(16))
        for name, value in tensors.items():
            vector = getattr(norm, name).clone()
            vector[7] = value
            norm = norm._replace(**{name: vector})
        return pool_before_norm(x, window, norm) is not None

    assert found(x)
    for value in (torch.nan, torch.inf, -torch.inf):
        odd = x.clone()
        odd[1, 7, 3, 5] = value
        assert not found(odd)
    assert [found(x, weight=value) for value in (0.0, 1e-12, 1e30, torch.nan)] == [False] * 4
    assert not found(x, variance=-1.0) and not found(x, bias=torch.inf) and not found(x, mean=torch.nan)
    dark = x.clone()
    dark[:, 7] = 0.0
    # a norm of zero to zero may give either zero, one of zero to something else gives only that
    assert found(dark) and not found(dark, bias=0.0, mean=0.0) and not found(dark * 1e-20, bias=0.0, mean=0.0)
    assert not found(dark, bias=1.0, mean=1.0, weight=1.0, variance=1.0 - 1e-5)
    for other in [*layouts(x), x.double(), x.bfloat16(), x[:, :8].contiguous(memory_format=LAST), x[:, :, :1]]:
        same = other.shape == x.shape and other.stride() == x.stride() and other.dtype == torch.float32
        assert found(other) is same


def rows(copies: int) -> tuple[nn.Sequential, PackedStem]:
    torch.manual_seed(0)
    tile = OrderedDict[str, nn.Module](tile=Tile(copies)) if copies > 1 else {}
    conv, pool = nn.Conv2d(3, 16, 3, 2, 1, bias=False), PackedMaxPool2d(3, 2, 1)
    norm, last = drawn_norm(16 * copies), nn.Hardtanh()
    row = nn.Sequential(OrderedDict({"conv": conv, **tile, "norm": norm, "pool": pool, "last": last}))
    made = PackedStem.of(row)
    assert made is not None and list(made.state_dict()) == list(row.state_dict())
    return row, made


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the pooling went first, of every call that asked."""
    ran: list[bool] = []

    def record(*inputs: Any) -> Tensor | None:
        y = pool_before_norm(*inputs)
        ran.append(y is not None)
        return y

    monkeypatch.setattr(stem, "pool_before_norm", record)
    return ran


@pytest.mark.parametrize("copies", [1, 2])
def test_a_row_gives_the_numbers_of_its_modules(copies: int, first: list[bool]) -> None:
    row, made = rows(copies)
    x = drawn(2, 3, 26, 19).to(memory_format=LAST)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(bits(made(x)), bits(row(x)))
        assert first == [True, True]
        assert torch.equal(made(x.contiguous()), row(x.contiguous()))
        made.norm.weight.data.neg_()  # the row's too: a change without a trace is seen
        assert torch.equal(bits(made(x)), bits(row(x))) and first[-1]
        first.clear()
        training = copy.deepcopy(row).train()
        assert torch.equal(made.train()(x), training(x)) and torch.equal(
            made.norm.running_mean, training.norm.running_mean
        )
    row.norm.load_state_dict(training.norm.state_dict())
    made.eval()
    y = made(x)
    y.sum().backward()
    assert torch.equal(y, row(x)) and made.norm.weight.grad is not None and made.norm.weight.grad.abs().sum() > 0
    assert first == []


@pytest.mark.parametrize(
    "hook",
    [
        lambda row: row.norm.register_forward_hook(lambda _, __, y: y + 1),
        lambda row: row.pool.register_forward_pre_hook(lambda _, x: x[0] * 2),
        lambda row: setattr(row.norm, "forward", lambda x: x * 2),
        lambda row: setattr(row, "norm", nn.Identity()),
        lambda row: setattr(row, "pool", nn.AvgPool2d(2)),
    ],
)
@torch.no_grad()
def test_what_is_added_or_changed_is_run(hook: Callable[[Any], Any], first: list[bool]) -> None:
    for copies in (1, 2):
        _, made = rows(copies)
        x = drawn(1, 3, 16, 20).to(memory_format=LAST)
        before = made(x)
        first.clear()
        hook(made)
        want = x
        for child in made:
            want = child(want)
        assert torch.equal(made(x), want) and not torch.equal(want, before) and first == []


@torch.no_grad()
def test_packed_networks_have_such_stems_and_what_traces_sees_the_modules(first: list[bool]) -> None:
    x = drawn(1, 3, 32, 48).to(memory_format=LAST)
    networks = {"reactnet_resnet18": PackedStem, "es_bireal_resnet18": PackedStem, "reactnet_a": nn.Sequential}
    for name, kind in networks.items():
        latent = stir(create_model(name, num_classes=10)).stem
        packed = pack_(nn.Sequential(OrderedDict(stem=copy.deepcopy(latent), layer=BinaryConv2d(64, 8, 3)))).stem
        assert type(packed) is kind and list(packed.state_dict()) == list(latent.state_dict())
        first.clear()
        assert torch.equal(bits(packed(x)), bits(latent(x)))
        assert first == ([True] if kind is PackedStem else [])
        traced = torch.jit.trace(packed, (x,), check_trace=False)  # type: ignore[no-untyped-call]
        assert torch.equal(traced(x), latent(x)) and len(first) < 2
    kept = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    assert PackedStem.of(kept) is None
