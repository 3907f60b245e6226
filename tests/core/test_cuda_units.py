"""Training on bits on a GPU: its steps against the CPU's, whole units against the plain layers; skipped without a GPU.

What is checked without one: tests/core/test_cuda_training.py.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import TrainOnBits, kernels
from esbnn_core.kernels import cuda
from esbnn_core.kernels.cuda import training as on_cuda
from esbnn_core.training.on_bits import signs, tail
from esbnn_core.training.on_bits.signs import SignRule
from tests.helpers.bit_training import UNITS, compare, draw, in_double, on_bits, remove_torchs_steps, run, unit_of
from tests.helpers.units import randn, relative

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: make gpu-check runs this on one")

KINDS = (torch.float32, torch.bfloat16, torch.float16)
ROUNDED = (1e-6, 2.0**-8, 2.0**-11)
"""How far one rounding to each of them may be."""


@pytest.fixture(scope="module", autouse=True)
def served() -> None:
    """All of this is about the kernels: a GPU that they do not serve is a failure here, with its reason."""
    gpu, status = cuda.choose()
    assert gpu is not None, status.reason


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """The products of float32 in float32, which TF32 would round."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def moved(made: tail.Tail) -> tail.Tail:
    return tail.Tail(*(t.cuda() if isinstance(t, Tensor) else t for t in made))


def same_every_time(call: Callable[[], list[Tensor | None]]) -> list[Tensor | None]:
    first = call()
    for _ in range(5):
        for one, other in zip(first, call(), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
    return [None if t is None else t.cpu() for t in first]


SHAPES = [(300, 24, 1), (3000, 100, 4), (70, 8, 4), (130, 7, 4), (5001, 64, 1), (300, 128, 16)]
CASES = list(itertools.product(("none", "prelu", "rprelu", "hardtanh"), (False, True), (False, True)))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_tail_is_torchs_in_float64(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    act, inner, with_residual = CASES[number]
    sums_dtype, kind = (torch.int32, torch.int16)[number % 2], KINDS[number % 3]
    made, (sums, residual, grad) = draw(SHAPES[number % 6], act, inner, number % 3 > 0, sums_dtype)
    residual, grad = residual.to(kind), grad.to(kind)
    added = residual if with_residual else None
    exact = None if added is None else added.double()
    want_y = tail.finish_in_torch(in_double(made), sums, exact, torch.float64)
    want = tail.unfinish_in_torch(in_double(made), grad.double(), sums, exact, with_residual)
    remove_torchs_steps(monkeypatch.delattr)
    there = moved(made), sums.cuda(), None if added is None else added.cuda(), grad.cuda()

    def step() -> list[Tensor | None]:
        made, sums, added, grad = there
        y = tail.finish(made, sums, added, torch.float32)
        return [y, *tail.unfinish(made, grad, sums, added, added is not None)]

    y, *got = same_every_time(step)
    assert y is not None and relative(y.double(), want_y) < 1e-6
    for name, value, wanted in zip(want._fields, got, want, strict=True):
        assert (value is None) == (wanted is None), name
        assert value is None or not wanted.any() or relative(value.double(), wanted) < 1e-6, name
    narrow = tail.finish(*there[:3], kind)
    assert torch.equal(narrow.cpu(), y.to(kind))


def test_moments_are_whole_numbers() -> None:
    for (filters, rows), largest in itertools.product(((64, 100_000), (100, 3001), (3, 70)), (40, 4608, 46340)):
        sums = torch.randint(-largest, largest + 1, (rows, filters), generator=torch.Generator().manual_seed(rows))
        for kind in [torch.int32] if largest > 32767 else [torch.int32, torch.int16]:
            got = on_cuda.moments(sums.to(kind).cuda(), largest)
            assert got is not None and torch.equal(got.cpu(), torch.stack([sums.sum(0), (sums**2).sum(0)]))


@pytest.mark.parametrize("ste", ["identity", "clip", "poly2"])
def test_an_estimator_is_torchs_in_float64(ste: Any) -> None:
    rule = SignRule(ste, 0.8, False)
    for (channels, rows), kind, bound in zip(((64, 20001), (100, 300), (7, 70)), KINDS, ROUNDED, strict=True):
        x, shift = randn(rows, channels, 1, 1, seed=2).to(kind), randn(channels, seed=3).float()
        grad, onto = randn(rows, channels, seed=4).to(kind), randn(rows, channels, seed=5).float()
        want, want_total = signs.through_in_torch(
            rule, grad.double(), x.flatten(1).double(), shift.double(), onto.double()
        )
        got, total = same_every_time(
            lambda x=x, grad=grad, shift=shift, onto=onto: [
                *signs.through(rule, grad.cuda(), x.cuda(), shift.cuda(), onto.cuda())
            ]
        )
        assert got is not None and total is not None
        assert relative(got.double(), want) < bound and relative(total, want_total) < 1e-6


@pytest.mark.parametrize(("channels", "groups"), [(256, 1), (96, 3), (100, 2), (33, 1)])
def test_bits_are_read_back(channels: int, groups: int) -> None:
    x = randn(3, channels, 13, 7, seed=1).float().to(memory_format=torch.channels_last)
    shift = 0.3 * randn(channels, seed=2).float()
    want = torch.where(x + shift.view(1, -1, 1, 1) >= 0, 1.0, -1.0)
    there, ends = x.cuda(), shift.cuda()
    bits = kernels.pack_sign(there, ends, groups, 1)
    mask = signs.mask_bits(there, ends, 0.5, groups)
    for dtype in KINDS:
        assert torch.equal(signs.signs_of(there, ends, dtype).cpu().float(), want)
        got = signs.unpack(bits, channels, groups, dtype).permute(0, 3, 1, 2)
        assert got.dtype == dtype and torch.equal(got.cpu().float(), want)
    inside = ((x + shift.view(1, -1, 1, 1)).abs() <= 0.5).permute(0, 2, 3, 1).reshape(-1, channels)
    rows = randn(3 * 13 * 7, channels, seed=3).float()
    got, total = signs.through_mask(mask, groups, rows.cuda(), ends, rows.cuda(), torch.float32)
    assert torch.equal(got.cpu(), rows * inside + rows)
    assert relative(total.cpu(), (rows * inside).double().sum(0)) < 1e-6


@pytest.mark.parametrize("config", [None, TrainOnBits(keep_sums=True)], ids=["sums again", "sums kept"])
@pytest.mark.parametrize("options", [*UNITS, {"norm": False, "weight_quantizer": "sign", "act": "none"}], ids=str)
def test_gradients_of_a_unit_are_the_plain_layers(
    options: dict[str, Any], config: TrainOnBits | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step falls back to torch; the plain unit is in float64, on the CPU and on the device."""
    unit = unit_of(options)
    x = randn(3, 8 * unit.tau * unit.groups, 17, 9, seed=7).float().double()
    single = on_bits(copy.deepcopy(unit).float(), config).cuda()
    plain = copy.deepcopy(unit).float().double()
    wanted = [run(copy.deepcopy(plain), x), run(copy.deepcopy(plain).cuda(), x.cuda())]
    remove_torchs_steps(monkeypatch.delattr, options.get("norm", True))
    got = {name: t.cpu() for name, t in run(single, x.float().cuda()).items()}
    for want in wanted:
        compare(got, {name: t.cpu() for name, t in want.items()}, 1e-5)


def test_gradients_in_bfloat16_round_what_goes_through_the_convolution_alone() -> None:
    unit = unit_of({"tau": 2, "groups": 2}).float().cuda()
    x = randn(3, 32, 17, 9, seed=7).float().cuda()
    want, got = run(on_bits(unit), x), run(on_bits(unit, TrainOnBits(gradient_dtype=torch.bfloat16)), x)
    through = {"gradient of x", "gradient of conv.weight", "gradient of conv.sign.shift"} & got.keys()
    for name in got:
        assert torch.equal(got[name], want[name]) if name not in through else relative(got[name], want[name]) < 2.0**-7


def test_a_graph_of_a_step_replays_it() -> None:
    unit = on_bits(unit_of({"tau": 2, "groups": 2, "inner_act": True}).float()).cuda()
    x = randn(3, 32, 17, 9, seed=7).float().cuda().requires_grad_()
    leaves = (x, *unit.parameters())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            want = torch.autograd.grad(unit(x).square().sum(), leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.autograd.grad(unit(x).square().sum(), leaves)
    for _ in range(3):
        graph.replay()
        for one, other in zip(got, want, strict=True):
            assert relative(one.double(), other.double()) < 1e-5


def test_values_past_two_to_the_31_are_found() -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("less than 12 GB of device memory are free")
    bits = torch.zeros((1 << 22) + 3, 16, dtype=torch.int32, device="cuda")
    bits[-1] = -1
    got = on_cuda.unpack(bits, 512, 1, torch.bfloat16)
    assert got is not None and got.numel() > 1 << 31
    assert got[-1].eq(1).all() and got[:-1].eq(-1).all()
