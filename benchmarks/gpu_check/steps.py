"""The steps around the sums of training on bits on the device: right, repeatable, in a graph, and how long.

Each step of esbnn_core.kernels.cuda.training is compared with float64 torch on the CPU; moments and signs are exact.
The times are the rows of benchmarks.speed.steps. A rehearsal runs the kernels' own sources in the tests' emulator.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.kernels import kernels_on
from benchmarks.gpu_check.task import Task
from benchmarks.speed import steps
from benchmarks.speed.gpu import Plan
from benchmarks.speed.graphs import captured
from esbnn_core.kernels.norm import NormCall
from esbnn_core.kernels.training import steps_of
from esbnn_core.training.on_bits import signs, tail
from esbnn_core.training.on_bits.signs import SignRule
from esbnn_core.training.on_bits.statistics import from_moments
from esbnn_core.training.on_bits.tail import Tail
from tests.helpers.bit_training import draw, draw_norm, in_double, on_bits, unit_of
from tests.helpers.emulation import build_training, steps_emulated
from tests.helpers.units import randn

BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""How far a result of each type may be from float64, as a part of the largest value."""
SHAPES = ((37, 24, 1), (530, 8, 4), (21, 100, 4), (20001, 64, 1), (3000, 128, 16), (9001, 21, 2))
"""Rows, filters and copies."""
REPEATS = 5
TINY = Plan(1, 3, "cpu", copied=1 << 16)

Results = dict[str, Tensor | None]
TRACKED = ("running mean", "running var")


def compare(task: Task, step: str, case: str, call: Callable[[], Results | None], want: Results) -> None:
    """One row: the largest error of a step's results; a difference between two runs or past the bound is a fault."""
    first = call()
    if first is None:
        task.fault(f"the kernels do not serve the step {step} of {case}")
        return
    again = [call() for _ in range(REPEATS)]
    for name, value in first.items():
        if value is not None and not all(r is not None and torch.equal(r[name], value) for r in again):
            task.fault(f"{name} of the step {step} of {case} is not the same every time")
    errors = {}
    for name, wanted in want.items():
        value = first[name]
        if wanted is None or value is None or not wanted.any():
            continue
        far = (value.cpu().double() - wanted.double()).abs().max() / wanted.double().abs().max()
        errors[name] = float(f"{far.item():.2e}")
        if not errors[name] < BOUNDS.get(value.dtype, 1e-30):  # whole numbers are exact
            task.fault(f"{name} of the step {step} of {case} is off by {errors[name]} of its largest value")
    task.row("correctness", {"step": step, "case": case, "errors": errors})


def tails(task: Task) -> None:
    """The tail forward and backward, and what the batch's statistics add."""
    cases = list(itertools.product(("none", "prelu", "rprelu", "hardtanh"), (False, True)))
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    for number, (act, inner) in enumerate(cases[:: 3 if task.rehearse else 1]):
        shape, kind = SHAPES[number % (3 if task.rehearse else len(SHAPES))], kinds[number % 3]
        made, (sums, residual, grad) = draw(shape, act, inner, True, (torch.int32, torch.int16)[number % 2])
        residual, grad = residual.to(kind), grad.to(kind)
        wide = residual.double()
        want: Results = {"y": tail.finish_in_torch(in_double(made), sums, wide, torch.float64)}
        want |= tail.unfinish_in_torch(in_double(made), grad.double(), sums, wide, True)._asdict()
        there = Tail(*(t.to(task.device) if isinstance(t, Tensor) else t for t in made))
        maps = [t.to(task.device) for t in (sums, residual, grad)]

        def found(there: Tail = there, maps: list[Tensor] = maps, kind: torch.dtype = kind) -> Results | None:
            call, (sums, residual, grad) = there.native(), maps
            y, back = call.forward(sums, residual, kind), call.backward(grad, sums, residual, True)
            if y is None or back is None:
                return None
            return {"y": y, **tail.unfinish(there, grad, sums, residual, True)._asdict()}

        compare(task, "tail", f"{shape} {act}{' inner' if inner else ''} {kind}", found, want)
        back, constant, slope = (randn(n, shape[1], seed=n).float() for n in (shape[0], 1, 2))
        ends = (constant[0], slope[0])
        want = {
            "gradient": tail.add_statistics_in_torch(
                in_double(made), back.double(), sums, *(end.double() for end in ends)
            )
        }
        vectors = [t.to(task.device) for t in (made.centre, *ends) if t is not None]

        def added(back: Tensor = back, maps: list[Tensor] = maps, vectors: list[Tensor] = vectors) -> Results | None:
            given = back.to(task.device, copy=True)
            got = steps_of(given).add_statistics(given, maps[0], *vectors, maps[1].dtype)
            return None if got is None else {"gradient": got}

        compare(task, "statistics", f"{shape} {kind}", added, want)


def whole_numbers(task: Task) -> None:
    """Moments of sums, and signs from values and bits."""
    for rows, channels, _ in SHAPES[: 3 if task.rehearse else None]:
        sums = torch.randint(-4608, 4609, (rows, channels), generator=torch.Generator().manual_seed(rows))
        want: Results = {"both": torch.stack([sums.sum(0), (sums**2).sum(0)])}
        there = sums.int().to(task.device)
        moments = steps_of(there).moments
        compare(task, "moments", f"{(rows, channels)}", lambda m=moments, s=there: _named("both", m(s, 4608)), want)
        x = randn(rows, channels, seed=1).float()
        bits = torch.randint(-(2**31), 2**31, (rows, -(-channels // 32)), generator=torch.Generator().manual_seed(1))
        values = (-1.0, 1.0)
        want = {
            "of values": torch.where(x >= 0, 1.0, -1.0),
            "of bits": signs.unpack_in_torch(bits.int(), channels, 1, values, torch.float32),
        }
        given = x.to(task.device), bits.int().to(task.device)

        def read(given: tuple[Tensor, Tensor] = given, channels: int = channels) -> Results | None:
            serving = steps_of(given[0])
            first = serving.signs(given[0], None, torch.bfloat16)
            second = serving.unpack(given[1], channels, 1, torch.bfloat16)
            return None if first is None or second is None else {"of values": first, "of bits": second}

        compare(task, "signs", f"{(rows, channels)}", read, want)


def norms(task: Task) -> None:
    """The norm over exact moments, what it tracks, and its gradients."""
    for number, (filters, copies) in enumerate(((8, 4), (70, 1), (512, 1), (128, 4))):
        call, beta, shift_in, running = draw_norm(filters, copies, number)
        totals = randn(6, call.channels, seed=12)
        mean, var = from_moments(call.moments, call.rows)
        scale = torch.ones(filters).double() if call.scale is None else call.scale.double()
        gamma = torch.ones(call.channels).double() if call.gamma is None else call.gamma.double()
        root = (var * scale * scale + call.eps).rsqrt()
        part = root * scale
        by_filter = ((totals[1] * gamma).view(copies, -1).sum(0), (gamma * totals[0]).view(copies, -1).sum(0))
        want: Results = {
            "factor": part.repeat(copies) * gamma,
            "offset": sum((t.double() for t in (beta, shift_in) if t is not None), torch.zeros(1)),
            "constant": -part * by_filter[1] / call.rows,
            "slope": -by_filter[0] * part**3 / call.rows,
            "of scale": by_filter[0] * root**3 * call.eps,
            "of gamma": totals[1] * part.repeat(copies),
        }
        if running is not None:
            new = (mean * scale, var * scale * scale * (call.rows / (call.rows - 1)))
            want |= {
                name: 0.7 * t.double() + 0.3 * n.repeat(copies)
                for name, t, n in zip(TRACKED, running, new, strict=True)
            }
        there = call._replace(**{key: _to(task, getattr(call, key)) for key in ("moments", "scale", "gamma")})
        ends, sums = [_to(task, t) for t in (beta, shift_in)], totals.to(task.device)

        def found(
            there: NormCall = there, ends: list[Tensor | None] = ends, running: Any = running, sums: Tensor = sums
        ) -> Results | None:
            updated = None if running is None else tuple(t.to(task.device, copy=True) for t in running)
            made = steps_of(sums).norm(there, *ends, updated, 0.3)
            back = steps_of(sums).norm_gradients(there, sums)
            if made is None or back is None:
                return None
            parts = zip(("centre", "factor", "offset"), made.split(there.forward_sizes()), strict=True)
            names = ("constant", "slope", "of scale", "of gamma")
            gradients = zip(names, back.split(there.backward_sizes())[:4], strict=True)
            tracked = () if updated is None else zip(TRACKED, updated, strict=True)
            return {**dict(parts), **dict(gradients), **dict(tracked)}

        compare(task, "norm", f"{(filters, copies)}", found, want)


def _to(task: Task, x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(task.device)


def estimators(task: Task) -> None:
    """The estimators of signs, with a residual's gradient, and their sums over rows."""
    for number, ste in enumerate(("identity", "clip", "poly2")):
        rows, channels, _ = SHAPES[number + (0 if task.rehearse else 2)]
        rule = SignRule(ste, 0.8, False)
        x, grad, onto = (randn(rows, channels, seed=seed).float() for seed in (2, 3, 4))
        shift = randn(channels, seed=5).float()
        exact = signs.through_in_torch(rule, grad.double(), x.double(), shift.double(), onto.double())
        given = [t.to(task.device) for t in (grad, x, shift, onto)]

        def found(given: list[Tensor] = given, ste: str = ste) -> Results | None:
            grad, x, shift, onto = (t.clone() for t in given)
            done = steps_of(grad).estimator(ste, 0.8, grad, x, shift, None, onto, torch.float32)
            return None if done is None else dict(zip(("gradient", "total"), done, strict=True))

        compare(task, "estimator", f"{(rows, channels)} {ste}", found, {"gradient": exact[0], "total": exact[1]})


def graphs(task: Task) -> None:
    """A CUDA graph of a unit's forward and backward: nothing in it waits for the device or copies from the host."""
    for options in ({"tau": 2, "groups": 2, "inner_act": True}, {"tau": 4, "act": "hardtanh", "ste": "clip"}):
        unit = on_bits(unit_of(options).float()).to(task.device)
        x = randn(2, 8 * options["tau"] * options.get("groups", 1), 5, 3, seed=7).float().to(task.device)
        leaves = (x.requires_grad_(), *unit.parameters())

        def step(_: int, unit: nn.Module = unit, leaves: tuple[Tensor, ...] = leaves) -> object:
            with torch.enable_grad():
                return torch.autograd.grad(unit(leaves[0]).square().sum(), leaves)

        captured(step, 1, task.device)()
        task.row("captured", {"unit": str(options)})


def _named(name: str, value: Tensor | None) -> Results | None:
    return None if value is None else {name: value}


def times(task: Task) -> None:
    """The rows of benchmarks.speed.steps."""
    plan, layers = (TINY, ((5, 8, 1), (3, 8, 4))) if task.rehearse else (Plan(rounds=5), steps.LAYERS)
    task.keep(step_times=steps.run(plan, layers))


def run_times(task: Task) -> None:
    """How long each step is."""
    with torch.no_grad(), kernels_on(task, build_training, steps_emulated):
        task.attempt("steps, times", lambda: times(task))


def run_steps(task: Task) -> None:
    """All checks; an error in one part is a fault and the next goes on."""
    with torch.no_grad(), kernels_on(task, build_training, steps_emulated):
        for label, part in (
            ("tails", tails),
            ("norms", norms),
            ("whole numbers", whole_numbers),
            ("estimators", estimators),
            ("graphs", graphs),
        ):
            task.attempt(f"steps, {label}", lambda part=part: part(task))
    print(f"{len(task.record.get('correctness', []))} steps compared with float64")
