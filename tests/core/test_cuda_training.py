"""The CUDA kernels of training on bits, their own sources on an emulated device, against the CPU's and float64 torch.

The emulator (tests/helpers/emulation) is no GPU: what it cannot show is listed in docs/reports/gpu.md.
"""

import copy
import ctypes
import itertools
import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esbnn_core import kernels
from esbnn_core.kernels import cuda
from esbnn_core.kernels.cpu import training as on_cpu
from esbnn_core.kernels.cuda import division
from esbnn_core.kernels.cuda import training as on_cuda
from esbnn_core.kernels.training import steps_of
from esbnn_core.training.on_bits import signs, tail
from esbnn_core.training.on_bits.signs import SignRule
from esbnn_core.training.on_bits.weights import through_weight
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
from tests.helpers.emulation import build_training, steps_emulated
from tests.helpers.units import randn, relative

KINDS = (torch.float32, torch.bfloat16, torch.float16)


class Traced(Tensor):
    """A tensor of another class."""


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if platform.system() != "Linux":
        pytest.skip("the emulator's fibers are made for Linux")
    found = build_training(tmp_path_factory.mktemp("emulated"))
    if found is None or not paths.usable()[1:]:
        pytest.skip("no g++ here to compile the emulated kernels")
    return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of several rows, as in large maps."""
    monkeypatch.setattr(division, "BLOCKS", 2)


def both(handle: ctypes.CDLL, call: Callable[[], Any]) -> tuple[Any, Any]:
    """The results of a call on the CPU's library and on the emulated kernels, twice the same there, in both orders."""
    with steps_emulated(handle) as emulator:
        got = call()
        emulator.backwards = True
        again = call()
        assert emulator.launched and len(emulator.launched) % 2 == 0, "the kernels did not serve"
    for one, other in zip(tensors(got), tensors(again), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    return call(), got


def tensors(result: Any) -> list[Tensor]:
    return [t for t in ((result,) if isinstance(result, Tensor) else result) if t is not None]


SHAPES = [(37, 24, 1), (11, 100, 1), (70, 8, 4), (21, 3, 16), (1, 16, 4), (530, 12, 1), (130, 7, 4), (300, 100, 4)]
CASES = list(itertools.product(("none", "prelu", "rprelu", "hardtanh"), (False, True), (False, True)))


@pytest.mark.parametrize("part", range(4))
def test_a_tail_is_the_cpus_and_torchs_in_float64(part: int, handle: ctypes.CDLL) -> None:
    for number, (act, inner, with_residual) in list(enumerate(CASES))[part::4]:
        sums_dtype, kind = (torch.int32, torch.int16)[number % 2], KINDS[number % 3]
        made, (sums, residual, grad) = draw(SHAPES[number % 8], act, inner, number % 3 > 0, sums_dtype)
        residual, grad = residual.to(kind), grad.to(kind)
        added = residual if with_residual else None

        def step(
            made: tail.Tail = made, sums: Tensor = sums, added: Tensor | None = added, grad: Tensor = grad
        ) -> list[Any]:
            y = tail.finish(made, sums, added, grad.dtype)
            return [y, *tail.unfinish(made, grad, sums, added, added is not None)]

        (want_y, *want), (y, *got) = both(handle, step)
        assert torch.equal(y, want_y)
        exact = None if added is None else added.double()
        ends = tail.unfinish_in_torch(in_double(made), grad.double(), sums, exact, with_residual)
        for name, value, beside, wanted in zip(ends._fields, got, want, ends, strict=True):
            if value is None:
                assert beside is None and wanted is None
            elif value.dim() == 2 or not beside.any():
                assert torch.equal(value, beside), (name, number)
            else:
                assert relative(value, beside) < 1e-6, (name, number)
            # what no step needs may be there all the same
            assert value is None or not wanted.any() or relative(value.double(), wanted) < 1e-6, (name, number)


@pytest.mark.parametrize(("filters", "rows"), [(100, 21), (24, 70), (3, 33)])
def test_the_batchs_statistics_act_on_the_gradient_of_the_sums(filters: int, rows: int, handle: ctypes.CDLL) -> None:
    for dtype, kind in zip(KINDS, (torch.int32, torch.int16, torch.int32), strict=True):
        made, (sums, _, _) = draw((rows, filters, 1), "none", False, True, kind)
        grad, constant, slope = (randn(n, filters, seed=n).float() for n in (rows, 1, 2))
        want, got = both(
            handle,
            lambda made=made, sums=sums, dtype=dtype, grad=grad, ends=(constant[0], slope[0]): tail.add_statistics(
                made, grad.clone(), sums, *ends, dtype
            ),
        )
        assert got.dtype == dtype and torch.equal(got, want)


@pytest.mark.parametrize("largest", [40, 4608, 46340, 1 << 24])
def test_moments_are_whole_numbers(largest: int, handle: ctypes.CDLL) -> None:
    for filters, rows in ((24, 700), (100, 37), (5, 1), (3, 140)):
        sums = torch.randint(-largest, largest + 1, (rows, filters), generator=torch.Generator().manual_seed(rows))
        sums[0], sums[-1] = largest, -largest
        want = torch.stack([sums.sum(0), (sums**2).sum(0)])
        with steps_emulated(handle):
            for kind in [torch.int32] if largest > 32767 else [torch.int32, torch.int16]:
                got = on_cuda.moments(sums.to(kind), largest)
                assert got is not None and torch.equal(got, want), (filters, rows, kind)
    with steps_emulated(handle):
        assert on_cuda.moments(sums.int(), 1 << 31) is None


@pytest.mark.parametrize("ste", ["identity", "clip", "poly2"])
def test_an_estimator_is_the_cpus(ste: Any, handle: ctypes.CDLL) -> None:
    rule = SignRule(ste, 0.8, False)
    for (channels, rows), kind in zip(((24, 37), (100, 9), (7, 70), (8, 300)), (*KINDS, torch.float32), strict=True):
        x, shift = randn(rows, channels, 1, 1, seed=2).to(kind), randn(channels, seed=3).float()
        shift[0] = 0.0
        x[:6, 0, 0, 0] = torch.tensor([0.8, -0.8, 1.0, float("nan"), 0.0, -0.0]).to(kind)  # the edges belong to it
        grad, onto = randn(rows, channels, seed=4).to(kind), randn(rows, channels, seed=5).float()
        for moved, added in ((None, onto), (shift, None), (shift, onto)):
            (want, want_total), (got, total) = both(
                handle,
                lambda moved=moved, added=added, x=x, grad=grad: signs.through(
                    rule, grad.clone(), x, moved, None if added is None else added.clone()
                ),
            )
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
            assert got.dtype == want.dtype and (total is None) == (moved is None)
            if total is not None and ste != "poly2":  # that of a NaN is NaN
                assert relative(total, want_total) < 1e-6


def test_the_sum_of_an_estimator_is_exact_to_six_digits_and_that_of_weights_left_out(handle: ctypes.CDLL) -> None:
    x, grad = randn(600, 12, 1, 1, seed=2).float(), randn(600, 12, seed=4).float()
    rows, shift = x.flatten(1), torch.zeros(12)
    _, exact = signs.through_in_torch(SignRule("poly2", 1.0, False), grad.double(), rows.double(), shift, None)
    _, (_, total) = both(handle, lambda: signs.through(SignRule("poly2", 1.0, False), grad.clone(), x, shift, None))
    assert relative(total, exact) < 1e-6
    values, of = (randn(5, 6, 3, 3, seed=seed).float() for seed in (1, 2))
    with steps_emulated(handle) as emulator:
        got = through_weight(SignRule("clip", 0.9, False), of.clone(), values)
    assert torch.equal(got, of * (values.abs() <= 0.9)) and [k.function for k in emulator.launched] == ["estimator"]


@pytest.mark.parametrize(("channels", "groups"), [(96, 3), (24, 1), (100, 2), (6, 2), (33, 1)])
def test_bits_are_read_back(channels: int, groups: int, handle: ctypes.CDLL) -> None:
    x = randn(3, channels, 3, 2, seed=1).float().to(memory_format=torch.channels_last)
    shift = 0.3 * randn(channels, seed=2).float()
    x[0, 0] = torch.tensor([[0.0, -0.0], [float("nan"), 1.0], [-1.0, 2.0]])
    shift[0] = 0.0
    moved = x + shift.view(1, -1, 1, 1)
    bits, mask = kernels.pack_sign(x, shift, groups, 1), signs.mask_bits(x, shift, 0.5, groups)
    rows, inside = randn(18, channels, seed=3).float(), (moved.abs() <= 0.5).permute(0, 2, 3, 1).reshape(18, channels)
    want = torch.where(moved >= 0, 1.0, -1.0)
    for dtype in KINDS:
        _, got = both(handle, lambda dtype=dtype: signs.signs_of(x, shift, dtype))
        assert got.dtype == dtype and torch.equal(got.float(), want)
        _, got = both(handle, lambda dtype=dtype: signs.unpack(bits, channels, groups, dtype))
        assert got.dtype == dtype and torch.equal(got.permute(0, 3, 1, 2).float(), want)
    (_, total), (got, again) = both(
        handle, lambda: signs.through_mask(mask, groups, rows.clone(), shift, rows.clone(), torch.float32)
    )
    assert torch.equal(got, rows * inside + rows) and relative(again, (rows * inside).double().sum(0)) < 1e-6
    assert relative(again, total) < 1e-6


def test_the_blocks_of_a_large_map_are_all_added(handle: ctypes.CDLL) -> None:
    for blocks in (1, 31, 70):
        partials = randn(3, blocks, 20, seed=blocks).float()
        with steps_emulated(handle) as emulator:
            got = division.add_blocks(emulator, partials, 0b101)
        assert relative(got[::2], partials.double().sum(1)[::2]) < 1e-14 and not got[1].any()


def test_the_limits_of_a_hardtanh_have_no_gradient(handle: ctypes.CDLL) -> None:
    sums = torch.arange(-40, 40, dtype=torch.int16).view(5, 16)
    made = tail.Tail(1, None, torch.full((16,), 0.25), torch.zeros(16), act="hardtanh", limits=(-1.0, 2.0))
    _, got = both(handle, lambda: tail.unfinish(made, torch.ones(5, 16), sums, None, True))
    assert torch.equal(got.residual, ((sums > -4) & (sums < 8)).float())


def test_maps_that_lie_askew_are_taken_one_by_one(handle: ctypes.CDLL) -> None:
    made, (sums, residual, grad) = draw((21, 24, 4), "rprelu", True, True, torch.int32)
    askew = torch.empty(grad.numel() + 1)[1:].view(grad.shape).copy_(grad)
    first, second = (both(handle, lambda g=g: tail.unfinish(made, g, sums, residual, True))[1] for g in (grad, askew))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_the_kernels_do_not_read_is_left_to_torch(handle: ctypes.CDLL) -> None:
    sums, x = torch.ones(4, 8, dtype=torch.int32), torch.ones(4, 8)
    traced = x.as_subclass(Traced)  # as a tracer's tensors are
    with steps_emulated(handle) as emulator:
        for wrong in (x.double(), torch.ones(8, 4).t(), traced, x.long(), x[:0]):
            assert on_cuda.signs(wrong, None, torch.float32) is None
            assert on_cuda.estimator("identity", 1.0, wrong, None, None, None, None, torch.float32) is None
            call = on_cuda.TailCall(1, None, [x[0], x[0], None, None, None, None], "none", (0.0, 1.0))
            assert call.backward(wrong, sums[: len(wrong)], None, False) is None
        assert (
            on_cuda.TailCall(1, None, [x[0].double()] * 2 + [None] * 4, "none", (0, 1)).forward(
                sums, None, torch.float32
            )
            is None
        )
        assert on_cuda.moments(sums.long(), 8) is None and on_cuda.unpack(sums, 256, 1, torch.float64) is None
        assert not emulator.launched and on_cuda.signs(x, None, torch.float32) is not None
    # on the CPU itself the kernels do not serve, and each device has its own
    assert on_cuda.signs(x, None, torch.float32) is None
    assert steps_of(x) is on_cpu and steps_of(x.to("meta")) is on_cpu
    assert steps_of(torch.empty(0, device="cpu")) is not on_cuda and cuda._serving(x) is None


def test_a_division_has_every_row_and_depends_on_the_shape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for rows, channels, most in ((256 * 56 * 56, 64, 64), (256 * 49, 512, 64), (256 * 49, 128, 8), (7, 5, 64)):
        made = division.divide(rows, channels, most)
        assert made is not None and made.lanes * 4 * made.tiles >= channels > made.lanes * 4 * (made.tiles - 1)
        lines = 128 // made.lanes
        assert made.blocks * lines * made.turns >= rows > (made.blocks - 1) * lines * made.turns
        assert made.turns <= most and (rows < 1000 or 1000 < made.blocks * made.tiles < 5000)
    assert division.divide(1, 64 * 65536) is None and division.divide(0, 8) is None


@pytest.mark.parametrize(("filters", "copies"), [(8, 4), (70, 1), (3, 16)])
def test_a_norm_is_the_cpus_in_every_bit(filters: int, copies: int, handle: ctypes.CDLL) -> None:
    for number in range(4):
        call, beta, shift_in, running = draw_norm(filters, copies, number)
        totals = randn(6, copies * filters, seed=12)

        def forward(call: Any = call, beta: Any = beta, shift_in: Any = shift_in, running: Any = running) -> Any:
            updated = None if running is None else tuple(t.clone() for t in running)
            return (steps_of(call.moments).norm(call, beta, shift_in, updated, 0.3), *(updated or ()))

        for work in (forward, lambda call=call, totals=totals: steps_of(totals).norm_gradients(call, totals)):
            want, got = both(handle, work)
            for a, b in zip(tensors(got), tensors(want), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("options", UNITS, ids=str)
def test_a_unit_takes_all_its_steps_from_the_kernels_and_is_the_plain_one(
    options: dict[str, Any], handle: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of(options)
    x = randn(2, 8 * unit.tau * unit.groups, 5, 3, seed=7)
    single = on_bits(copy.deepcopy(unit).float())
    x = x.float().double()
    want = run(copy.deepcopy(unit).float().double(), x)
    remove_torchs_steps(monkeypatch.delattr)
    with steps_emulated(handle) as emulator:
        compare(run(single, x.float()), want, 1e-6)
        functions = [kernel.function for kernel in emulator.launched]
        once = ("tail", "tail_gradients", "moments", "batch_norm", "batch_norm_gradients")
        assert [functions.count(name) for name in once] == [1] * len(once)


VIEWS = {"view", "permute", "detach", "unsqueeze", "expand", "as_strided", "split_with_sizes", "alias", "select"}
VIEWS |= {"empty", "new_empty", "promote_types", "_unsafe_view"}


class Counted(TorchDispatchMode):
    """Counts operators of torch that would be a launch each on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        self.names[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


def test_a_step_of_a_unit_is_few_launches(handle: ctypes.CDLL) -> None:
    """Each costs the host of a GPU as much as a large map costs the device; there were 130 once."""
    unit = on_bits(unit_of({"tau": 2}).float())
    x = randn(2, 16, 6, 5, seed=7).float().to(memory_format=torch.channels_last).requires_grad_()
    with steps_emulated(handle) as emulator:
        unit(x).sum().backward()  # what is asked once
        unit.zero_grad()
        x.grad = None
        emulator.launched.clear()
        with Counted() as counted:
            unit(x).sum().backward()
    assert sum(counted.names.values()) <= 16 and len(emulator.launched) <= 12, (counted.names, emulator.launched)
