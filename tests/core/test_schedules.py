"""ProgressLR step by step against closed forms and against torch's own schedules."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from esbnn_core import InputError
from esbnn_core.lit.schedules import ProgressLR

PEAK = 0.4


def optimizer(*lrs: float) -> Optimizer:
    return SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs or (PEAK,)])


def walk(schedule: Any, steps: int) -> list[list[float]]:
    """Learning rates of `steps` optimizer steps, one list per parameter group."""
    rows = []
    for _ in range(steps):
        rows.append([group["lr"] for group in schedule.optimizer.param_groups])
        assert schedule.get_last_lr() == rows[-1]
        schedule.optimizer.step()
        schedule.step()
    return [list(column) for column in zip(*rows, strict=True)]


def lrs(total: int, steps: int | None = None, **options: Any) -> list[float]:
    schedule = ProgressLR(optimizer(), **options)
    schedule.bind(total)
    return walk(schedule, total if steps is None else steps)[0]


FORMS: dict[str, Callable[[float], float]] = {
    "constant": lambda p: 1.0,
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
}


@pytest.mark.parametrize("shape", FORMS)
@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_without_warmup(shape: str, total: int, floor: float) -> None:
    low = 0.0 if shape == "constant" else floor
    want = [PEAK * (low + (1 - low) * FORMS[shape](step / total)) for step in range(total)]
    assert lrs(total, shape=shape, floor=floor) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("shape", FORMS)
@pytest.mark.parametrize(("total", "warmup"), [(100, 0.1), (40, 0.5), (30, 0.25)])
@pytest.mark.parametrize("start", [0.0, 0.2])
def test_with_warmup(shape: str, total: int, warmup: float, start: float) -> None:
    got = lrs(total, shape=shape, warmup=warmup, start=start)
    rise = warmup * total
    for step, lr in enumerate(got):
        if step < rise:
            want = start + (1 - start) * step / rise
        else:
            want = FORMS[shape]((step - rise) / (total - rise))
        assert lr == pytest.approx(PEAK * want, rel=1e-12, abs=1e-15), step
    assert got[0] == pytest.approx(PEAK * start) and max(got) <= PEAK
    assert got[math.ceil(rise)] == max(got)


@pytest.mark.parametrize("total", [10, 60])
def test_torchs_own_schedules_agree(total: int) -> None:
    cosine = walk(CosineAnnealingLR(optimizer(), total, eta_min=0.1 * PEAK), total)[0]
    assert lrs(total, shape="cosine", floor=0.1) == pytest.approx(cosine, rel=1e-9)
    linear = walk(LinearLR(optimizer(), 1.0, 0.25, total), total)[0]
    assert lrs(total, shape="linear", floor=0.25) == pytest.approx(linear, rel=1e-9)


def test_behind_the_end_it_stays_at_the_floor() -> None:
    for shape in ("linear", "cosine"):
        assert lrs(10, steps=15, shape=shape, floor=0.1)[10:] == pytest.approx([0.1 * PEAK] * 5)
    assert lrs(0, steps=2, shape="constant") == [PEAK, PEAK]


@pytest.mark.parametrize(("warmup", "start", "want"), [(0.0, 0.0, 1.0), (0.5, 0.0, 0.0), (0.5, 0.25, 0.25)])
def test_bind_sets_the_first_lr(warmup: float, start: float, want: float) -> None:
    groups = (PEAK, 0.01)
    opt = optimizer(*groups)
    schedule = ProgressLR(opt, "linear", warmup, start)
    for total in (10, 1000):
        schedule.bind(total)
        assert [group["lr"] for group in opt.param_groups] == pytest.approx([want * lr for lr in groups])
        assert schedule.get_last_lr() == [group["lr"] for group in opt.param_groups]
    assert [group["initial_lr"] for group in opt.param_groups] == list(groups)


def test_every_group_keeps_its_own_peak() -> None:
    schedule = ProgressLR(optimizer(0.4, 0.04, 1e-3), "cosine", warmup=0.2, start=0.1, floor=0.05)
    schedule.bind(50)
    columns = walk(schedule, 50)
    for column, peak in zip(columns, (0.4, 0.04, 1e-3), strict=True):
        assert [lr / peak for lr in column] == pytest.approx([lr / 0.4 for lr in columns[0]])
        assert max(column) == pytest.approx(peak)


@pytest.mark.parametrize("shape", FORMS)
@pytest.mark.parametrize("stop", [1, 5, 13, 29])
def test_a_resumed_schedule_goes_on_as_before(shape: str, stop: int) -> None:
    total, options = 30, {"shape": shape, "warmup": 0.3, "start": 0.1, "floor": 0.02}

    def fresh() -> tuple[Optimizer, ProgressLR]:
        opt = Adam([torch.nn.Parameter(torch.zeros(2))], lr=PEAK)
        return opt, ProgressLR(opt, **options)  # type: ignore[arg-type]

    opt, schedule = fresh()
    schedule.bind(total)
    whole = walk(schedule, total)[0]
    opt, schedule = fresh()
    schedule.bind(total)
    assert walk(schedule, stop)[0] == whole[:stop]
    saved = {"optimizer": opt.state_dict(), "schedule": schedule.state_dict()}
    assert "total" not in saved["schedule"] and schedule.total == total
    opt, schedule = fresh()
    schedule.bind(total)
    opt.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    assert schedule.total == total
    assert walk(schedule, total - stop)[0] == whole[stop:]


def test_a_longer_run_resumes_with_its_own_length() -> None:
    short = ProgressLR(optimizer(), "linear")
    short.bind(10)
    walk(short, 5)
    longer = ProgressLR(optimizer(), "linear")
    longer.bind(20)
    longer.load_state_dict(short.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == pytest.approx([PEAK * (1 - 6 / 20)])
    # bound behind the loading, the lr of the step it stands at is the new length's
    longer = ProgressLR(optimizer(), "linear")
    longer.load_state_dict(short.state_dict())
    longer.bind(20)
    assert walk(longer, 2)[0] == pytest.approx([PEAK * (1 - 5 / 20), PEAK * (1 - 6 / 20)])


def test_one_step_ahead_is_reactnets_epoch() -> None:
    """1 - (e + 1) / E: its script steps the scheduler at the start of the epoch, the last one has lr 0.

    Source: papers.md#two-steps.
    """
    for epochs in (5, 128, 256):
        want = [PEAK * (1 - (epoch + 1) / epochs) for epoch in range(epochs)]
        assert lrs(epochs, shape="linear", ahead=1) == pytest.approx(want, abs=1e-12)
        assert lrs(epochs, shape="linear", ahead=1)[-1] == 0


@pytest.mark.parametrize("epochs", [30, 300])
def test_one_step_behind_is_binaryvits_epoch(epochs: int) -> None:
    """timm's cosine, stepped with e behind epoch e: epochs 0 and 1 share the peak (papers.md#binaryvit-training)."""
    timm_scheduler = pytest.importorskip("timm.scheduler")
    opt = optimizer(5e-4)
    theirs = timm_scheduler.CosineLRScheduler(opt, t_initial=epochs, lr_min=1e-5)
    want = []
    for epoch in range(epochs):
        want.append(opt.param_groups[0]["lr"])
        theirs.step(epoch)
    schedule = ProgressLR(optimizer(5e-4), "cosine", floor=1e-5 / 5e-4, ahead=-1)
    schedule.bind(epochs)
    got = walk(schedule, epochs)[0]
    assert got == pytest.approx(want, rel=1e-9) and got[0] == got[1] == 5e-4 > got[2]


@pytest.mark.parametrize(("epochs", "warmup"), [(512, 5), (100, 20)])
def test_prefix_is_timms_own(epochs: int, warmup: int) -> None:
    timm_scheduler = pytest.importorskip("timm.scheduler")
    opt = optimizer(1e-3)
    theirs = timm_scheduler.CosineLRScheduler(
        opt, t_initial=epochs, lr_min=1e-7, warmup_t=warmup, warmup_lr_init=1e-5, warmup_prefix=True
    )
    want = []
    for epoch in range(epochs):
        theirs.step(epoch)
        want.append(opt.param_groups[0]["lr"])
    schedule = ProgressLR(optimizer(1e-3), "cosine", warmup / epochs, start=0.01, floor=1e-4, prefix=True)
    schedule.bind(epochs)
    assert walk(schedule, epochs)[0] == pytest.approx(want, rel=1e-9)


def test_bnexts_published_values() -> None:
    """Spec 4.6, from a run of the original's formula."""
    schedule = ProgressLR(optimizer(1e-3), "cosine", 5 / 512, start=0.01, floor=1e-4, prefix=True)
    schedule.bind(512)
    got = walk(schedule, 512)[0]
    want = {0: 1.0e-5, 1: 2.08e-4, 4: 8.02e-4, 5: 1.0e-3, 128: 8.64e-4, 256: 5.15e-4, 511: 4.4e-7}
    for epoch, lr in want.items():
        assert float(f"{got[epoch]:.3g}" if epoch != 511 else f"{got[epoch]:.2g}") == pytest.approx(lr, rel=1e-9), epoch


def test_recus_epochs() -> None:
    """lr * (e + 1) / 5 for five epochs, cosine over 596 from epoch 4 (papers.md#recu)."""
    schedule = ProgressLR(optimizer(0.1), "cosine", 4 / 600, start=0.2)
    schedule.bind(600)
    got = walk(schedule, 600)[0]
    rise = [0.1 * (epoch + 1) / 5 for epoch in range(5)]
    fall = [0.05 * (1 + math.cos(math.pi * (epoch - 4) / 596)) for epoch in range(4, 600)]
    assert got == pytest.approx(rise[:4] + fall, rel=1e-9) and got[4] == pytest.approx(rise[4])


@pytest.mark.parametrize("ahead", [-3, 2])
def test_ahead_moves_the_whole_schedule_and_stays_inside_it(ahead: int) -> None:
    options: dict[str, Any] = {"shape": "cosine", "warmup": 0.2, "start": 0.1, "floor": 0.05}
    plain, moved = lrs(40, steps=45, **options), lrs(40, steps=40, ahead=ahead, **options)
    assert moved == [plain[max(0, step + ahead)] for step in range(40)]
    state = ProgressLR(optimizer(), **options).state_dict()
    old = {key: value for key, value in state.items() if key not in ("ahead", "prefix")}
    resumed = ProgressLR(optimizer(), ahead=ahead, **options)
    resumed.load_state_dict(old)  # of a file from before the two options
    assert (resumed.ahead, resumed.prefix) == (ahead, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "cosin"}, ["'cosin'", "constant", "linear", "cosine"]),
        ({"warmup": 1.0}, ["warmup must be", "got 1.0"]),
        ({"warmup": -0.1}, ["warmup must be", "got -0.1"]),
        ({"warmup": 5}, ["warmup must be", "got 5"]),
        ({"warmup": float("nan")}, ["warmup must be", "got nan"]),
    ],
    ids=str,
)
def test_what_makes_no_schedule_is_refused(options: dict[str, Any], words: list[str]) -> None:
    opt = optimizer()
    with pytest.raises(InputError) as caught:
        ProgressLR(opt, **options)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert [group["lr"] for group in opt.param_groups] == [PEAK]
