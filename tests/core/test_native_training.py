"""The native steps of training on bits: each path of this machine against float64 torch, whole numbers and autograd."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from esbnn_core import kernels
from esbnn_core.kernels.cpu import training as native
from esbnn_core.layers.quantizers import hard_sign, sign_ste
from esbnn_core.training.on_bits import signs, tail, weights
from esbnn_core.training.on_bits.signs import SignRule
from esbnn_core.training.on_bits.statistics import batch_statistics, moments_in_torch
from esbnn_core.training.on_bits.tail import Tail
from tests.helpers import paths
from tests.helpers.bit_training import (
    UNITS,
    compare,
    draw,
    draw_norm,
    in_double,
    on_bits,
    remove_torchs_steps,
    run,
    unit_of,
)
from tests.helpers.units import randn, relative


@pytest.fixture(autouse=True)
def library() -> None:
    if not paths.usable()[1:]:
        pytest.skip("no native library here")


def each_path(call: Callable[[], Any]) -> list[Any]:
    """The results of a call on every path of this machine; they may differ in nothing, because no step is joined."""
    found = []
    for path in paths.usable()[1:]:
        with paths.forced(path):
            found.append(call())
    return found


SHAPES = [(1, 16, 1), (41, 32, 1), (530, 48, 4), (19, 8, 4), (13, 8, 9), (7, 21, 2), (300, 3, 9), (9, 100, 1)]
CASES = list(itertools.product(("none", "prelu", "rprelu", "hardtanh"), (False, True), (False, True)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tail_is_that_of_torch_in_float64(shape: tuple[int, int, int]) -> None:
    for number, (act, inner, with_residual) in enumerate(CASES):
        sums_dtype = (torch.int32, torch.int16)[number % 2]
        made, (sums, residual, grad) = draw(shape, act, inner, number % 3 > 0, sums_dtype)
        added = residual if with_residual else None
        exact, exact_added = in_double(made), None if added is None else added.double()
        want = tail.finish_in_torch(exact, sums, exact_added, torch.float64)
        grads = tail.unfinish_in_torch(exact, grad.double(), sums, exact_added, with_residual)
        forward = each_path(lambda made=made, added=added, sums=sums: tail.finish(made, sums, added, torch.float32))
        backward = each_path(
            lambda made=made, added=added, sums=sums, grad=grad: tail.unfinish(
                made, grad, sums, added, added is not None
            )
        )
        for y, found in zip(forward, backward, strict=True):
            assert torch.equal(y, forward[0]) and relative(y.double(), want) < 1e-6
            for name, value, wanted in zip(found._fields, found, grads, strict=True):
                if value is None or not wanted.any():
                    assert (value is None) == (wanted is None), name
                    assert value is None or not value.any() or name in ("shift_out", "slope", "shift_in"), name
                    continue
                assert torch.equal(value, getattr(backward[0], name)), name
                assert relative(value.double(), wanted) < 1e-6, (name, act, inner, with_residual)


def test_the_limits_of_a_hardtanh_have_no_gradient() -> None:
    sums = torch.arange(-40, 40, dtype=torch.int16).view(5, 16)
    made = Tail(1, None, torch.full((16,), 0.25), torch.zeros(16), act="hardtanh", limits=(-1.0, 2.0))
    leaf = (0.25 * sums.double()).requires_grad_()
    torch.nn.functional.hardtanh(leaf, -1.0, 2.0).sum().backward()
    assert leaf.grad is not None and leaf.grad.sum() == 11
    for got in each_path(lambda: tail.unfinish(made, torch.ones(5, 16), sums, None, True)):
        assert torch.equal(got.residual.double(), leaf.grad)


def test_maps_of_narrow_types_are_widened_and_rounded_once() -> None:
    for dtype, act in itertools.product((torch.bfloat16, torch.float16), ("rprelu", "none")):
        made, (sums, residual, grad) = draw((27, 20, 4), act, False, True, torch.int32)
        narrow, got_grad = residual.to(dtype), grad.to(dtype)
        single = tail.finish(made, sums, narrow.float(), torch.float32)
        for y in each_path(lambda made=made, sums=sums, narrow=narrow: tail.finish(made, sums, narrow, narrow.dtype)):
            assert torch.equal(y, single.to(dtype))
        want = tail.unfinish(made, got_grad.float(), sums, narrow.float(), True)
        got = tail.unfinish(made, got_grad, sums, narrow, True)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize(("filters", "rows"), [(64, 70), (8, 33), (1, 50), (12, 9), (21, 8)])
def test_the_batchs_statistics_act_on_the_gradient_of_the_sums(filters: int, rows: int) -> None:
    made, (sums, _, _) = draw((rows, filters, 1), "none", False, True, torch.int16)
    grad, constant, slope = (randn(n, filters, seed=n).float() for n in (rows, 1, 2))
    constant, slope = constant[0], slope[0]
    want = tail.add_statistics_in_torch(in_double(made), grad.double(), sums, constant.double(), slope.double())
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
        for got in each_path(lambda dtype=dtype: tail.add_statistics(made, grad.clone(), sums, constant, slope, dtype)):
            assert got.dtype == dtype and relative(got.double(), want) < bound


@pytest.mark.parametrize("largest", [40, 4608, native.LARGEST])
def test_moments_are_whole_numbers(largest: int) -> None:
    for filters, rows in ((64, 300), (8, 1001), (2, 37), (5, 1), (33, 140)):
        generator = torch.Generator().manual_seed(rows)
        sums = torch.randint(-largest, largest + 1, (rows, filters), generator=generator, dtype=torch.int32)
        sums[0], sums[-1] = largest, -largest
        kinds = [torch.int32] if largest > 32767 else [torch.int32, torch.int16]
        want = torch.stack([sums.long().sum(0), (sums.long() ** 2).sum(0)])
        for kind in kinds:
            for got in each_path(lambda kind=kind, sums=sums: native.moments(sums.to(kind), largest)):
                assert torch.equal(got, want), (filters, rows, kind)
    assert native.moments(sums, native.LARGEST + 1) is None


def test_statistics_are_those_of_the_torch_code_also_over_two_processes() -> None:
    sums = (30 * randn(501, 24, seed=1) + 400).round().int()
    first, _, near = moments_in_torch(sums, torch.float64)
    mean = near + first / 501
    alone = batch_statistics(sums, None, torch.float32, 4608)
    assert relative(alone.mean, mean) < 1e-14 and relative(alone.var, sums.double().var(0, correction=0)) < 1e-12
    # two processes with the same rows
    both = batch_statistics(sums, lambda tensor: tensor.mul_(2), torch.float32, 4608)
    assert both.rows == 2 * alone.rows == 1002
    assert relative(both.mean, alone.mean) < 1e-14 and relative(both.var, alone.var) < 1e-12


@pytest.mark.parametrize("ste", ["identity", "clip", "poly2"])
@pytest.mark.parametrize("channels", [64, 20, 3])
def test_an_estimator_is_that_of_autograd(channels: int, ste: Any) -> None:
    rule, rows = SignRule(ste, 0.8, False), 37
    x, shift = randn(rows, channels, 1, 1, seed=2).float(), randn(channels, seed=3).float()
    shift[0] = 0.0
    x[:6, 0, 0, 0] = torch.tensor([0.8, -0.8, 1.0, -1.0, 0.0, -0.0])  # the edges, which belong to the inside
    grad, onto = randn(rows, channels, seed=4).float(), randn(rows, channels, seed=5).float()
    for moved, added in itertools.product((None, shift), (None, onto)):
        leaf = x.clone().requires_grad_()
        last = (moved if moved is not None else torch.zeros(channels)).clone().requires_grad_()
        sign_ste(leaf + last.view(1, -1, 1, 1), ste, 0.8).backward(grad[:, :, None, None])
        want = leaf.grad.flatten(1) if added is None else leaf.grad.flatten(1) + added
        for got, total in each_path(
            lambda moved=moved, added=added: signs.through(
                rule, grad.clone(), x, moved, None if added is None else added.clone()
            )
        ):
            assert torch.equal(got, want)
            assert (total is None) == (moved is None)
            assert total is None or relative(total, last.grad.double()) < 1e-6


@pytest.mark.parametrize(("channels", "groups"), [(64, 1), (96, 3), (40, 2), (6, 2), (33, 1)])
def test_bits_are_read_back(channels: int, groups: int) -> None:
    x = randn(3, channels, 3, 2, seed=1).float().to(memory_format=torch.channels_last)
    shift = 0.3 * randn(channels, seed=2).float()
    x[0, 0] = torch.tensor([[0.0, -0.0], [float("nan"), 1.0], [-1.0, 2.0]])
    shift[0] = 0.0
    moved = x + shift.view(1, -1, 1, 1)
    bits, mask = kernels.pack_sign(x, shift, groups, 1), signs.mask_bits(x, shift, 0.5, groups)
    rows = randn(18, channels, seed=3).float()
    for dtype in (torch.float32, torch.bfloat16):
        for got in each_path(lambda dtype=dtype: signs.signs_of(x, shift, dtype)):
            assert torch.equal(got, hard_sign(moved).to(dtype))
        for got in each_path(lambda dtype=dtype: signs.unpack(bits, channels, groups, dtype)):
            assert torch.equal(got.permute(0, 3, 1, 2), hard_sign(moved).to(dtype))
    inside = (moved.abs() <= 0.5).permute(0, 2, 3, 1).reshape(18, channels)
    for got, total in each_path(
        lambda: signs.through_mask(mask, groups, rows.clone(), shift, rows.clone(), torch.float32)
    ):
        assert torch.equal(got, rows * inside + rows)
        assert relative(total, (rows * inside).double().sum(0)) < 1e-6


@pytest.mark.parametrize("ste", ["clip", "identity", "poly2"])
def test_the_weights_estimator_keeps_every_layout(ste: Any) -> None:
    values, grad = (randn(5, 6, 3, 3, seed=seed).float() for seed in (1, 2))
    leaf = values.clone().requires_grad_()
    sign_ste(leaf, ste, 0.9).backward(grad)
    for first, second in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        given = values.to(memory_format=first)
        got = weights.through_weight(SignRule(ste, 0.9, False), grad.clone().to(memory_format=second), given)
        assert torch.equal(got, leaf.grad)
        assert ste == "identity" or got.stride() == given.stride()


def test_a_sum_is_the_same_for_any_number_of_threads() -> None:
    made, (sums, residual, grad) = draw((5000, 24, 4), "rprelu", True, True, torch.int32)
    x = randn(5000, 96, 1, 1, seed=3).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found = tail.unfinish(made, grad, sums, residual, True)
            through = signs.through(SignRule("poly2", 1.0, False), grad.clone(), x, torch.ones(96), residual.clone())
            results.append([tail.finish(made, sums, residual, torch.float32), *found, *through])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_what_the_library_does_not_read_is_left_to_torch() -> None:
    sums, x = torch.ones(4, 8, dtype=torch.int32), torch.ones(4, 8)
    with FakeTensorMode() as mode:
        traced = mode.from_tensor(x)
    for wrong in (x.double(), x.to("meta"), torch.ones(8, 4).t(), traced, x.long()):
        assert native.signs(wrong, None, torch.float32) is None
        assert native.estimator("identity", 1.0, wrong, None, None, None, None, torch.float32) is None
        call = native.TailCall(1, None, [x[0], x[0], None, None, None, None], "none", (0.0, 1.0))
        assert call.backward(wrong, sums, None, False) is None
    assert native.moments(sums.long(), 8) is None
    assert (
        native.TailCall(1, None, [x[0].double()] * 2 + [None] * 4, "none", (0.0, 1.0)).forward(
            sums, None, torch.float32
        )
        is None
    )
    with paths.forced("naive"):
        assert native.signs(x, None, torch.float32) is None
    assert native.signs(x, None, torch.float32) is not None


@pytest.mark.parametrize(("filters", "copies"), [(8, 4), (70, 1)])
def test_a_norm_is_that_of_torch_in_float64(filters: int, copies: int) -> None:
    """Centre, factor and offset make what F.batch_norm makes of the scaled and tiled sums; so does what it tracks."""
    for number in range(4):
        call, beta, shift_in, running = draw_norm(filters, copies, number)
        sums = (60 * randn(37, filters, seed=number) + 5).round()
        scaled = (sums if call.scale is None else sums * call.scale.double()).repeat(1, copies)
        tracked = None if running is None else [t.double() for t in running]
        numbers = [None if t is None else t.double() for t in (call.gamma, beta)]
        want = F.batch_norm(scaled, *(tracked or (None, None)), *numbers, True, 0.3, call.eps)
        want = want if shift_in is None else want + shift_in.double()
        made = native.norm(call, beta, shift_in, running, 0.3)
        assert made is not None
        centre, factor, offset = made.double().split(call.forward_sizes())
        assert relative((sums - centre).repeat(1, copies) * factor + offset, want) < 1e-6
        for got, expected in zip(running or (), tracked or (), strict=True):
            assert relative(got.double(), expected) < 1e-6
    assert native.norm(call._replace(scale=randn(filters)), None, None, None, 0.1) is None  # float64


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_changes_nothing(default: torch.dtype) -> None:
    """A trainer in half precision sets it while a step runs; what a library is given beside the maps is float32."""
    units = [*UNITS, {"shift": False, "act": "none"}]
    for options in units:
        unit = on_bits(unit_of(options).float())
        x = randn(3, 8 * unit.tau * unit.groups, 7, 5, seed=7).float()
        want = run(copy.deepcopy(unit), x)
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            got = run(copy.deepcopy(unit), x)
        finally:
            torch.set_default_dtype(before)
        assert all(torch.equal(got[name], value) for name, value in want.items()), options


def test_running_statistics_that_a_library_wrote_are_seen_to_have_changed() -> None:
    unit = on_bits(unit_of({}).float())
    norm = unit.norm
    before = [(t, t._version, t.clone()) for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
    unit(randn(3, 8, 7, 5).float())
    assert all(t._version > version and not torch.equal(t, value) for t, version, value in before)


@pytest.mark.parametrize("options", UNITS, ids=str)
def test_a_unit_is_native_from_end_to_end_and_the_plain_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step falls back to torch, and gradients are those of the plain unit in float64."""
    unit = unit_of(options)
    x = randn(3, 8 * unit.tau * unit.groups, 7, 5, seed=7)
    single = on_bits(copy.deepcopy(unit).float())
    x = x.float().double()
    want = run(copy.deepcopy(unit).float().double(), x)
    remove_torchs_steps(monkeypatch.delattr)
    compare(run(single, x.float()), want, 1e-6)
