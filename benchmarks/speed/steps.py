"""How long do the steps around the sums take when a unit trains on bits on a GPU? Our kernels against pieces of torch.

python -m benchmarks.speed.steps [--rounds 9] [--batch 256]

The steps are those of esbnn_core.training.on_bits: moments of the sums, the tail forward and backward, how the batch's
statistics act on the gradient, estimators of signs, and +-1 from values and bits. Maps are those of ReActNet-18's
stages and of their tau = 2 versions, larger than the cache but for the last stage. Medians over rounds in which both
take turns; the floor is the time of a copy of the bytes that a step has to move.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.command import positive, run_command
from benchmarks.speed.gpu import Plan, bandwidth, serving
from benchmarks.speed.graphs import time_in_turns
from benchmarks.timing import write
from esbnn_core.errors import InputError
from esbnn_core.kernels.training import Steps, steps_of
from esbnn_core.training.on_bits import signs, statistics, tail
from esbnn_core.training.on_bits.signs import SignRule
from esbnn_core.training.on_bits.tail import Tail

LAYERS = ((56, 64, 1), (14, 256, 1), (56, 16, 4), (7, 128, 4))
"""Sides, filters and copies."""
KINDS = (torch.float32, torch.bfloat16)
POLY2 = SignRule("poly2", 1.0, False)


@dataclass(frozen=True)
class Pair:
    """One step.

    Attributes:
        ours: a call of the kernels; None where they do not serve.
        torch: the same in pieces of torch operators.
        moved: bytes that it has to read and write.
    """

    ours: Callable[[], object]
    torch: Callable[[], object]
    moved: int


def tail_of(filters: int, copies: int, device: str) -> Tail:
    """A norm and an RPReLU."""
    g = torch.Generator(device=device).manual_seed(0)
    vectors = torch.randn(5, copies * filters, generator=g, device=device)
    centre = torch.randn(filters, generator=g, device=device)
    return Tail(copies, centre, 0.05 * vectors[0], vectors[1], None, "prelu", None, vectors[2], vectors[3])


def pairs(rows: int, filters: int, copies: int, kind: torch.dtype, device: str) -> dict[str, Pair]:
    """Every step by name, on maps of `rows` rows that are drawn once."""
    g, channels = torch.Generator(device=device).manual_seed(1), copies * filters
    made = tail_of(filters, copies, device)
    sums = torch.randint(-60, 61, (rows, filters), generator=g, device=device, dtype=torch.int32)
    x, grad, single = (torch.randn(rows, channels, generator=g, device=device) for _ in range(3))
    x, grad = x.to(kind), grad.to(kind)
    back = torch.randn(rows, filters, generator=g, device=device)
    words = torch.randint(-(2**31), 2**31, (rows, -(-channels // 32)), generator=g, device=device).int()
    steps: Steps = steps_of(sums)
    call, vector = made.native(), torch.zeros(filters, device=device)
    map_bytes, float_bytes, sums_bytes, bits = (
        x.numel() * x.element_size(),
        4 * x.numel(),
        4 * sums.numel(),
        4 * words.numel(),
    )
    return {
        "moments": Pair(
            lambda: steps.moments(sums, 60), lambda: statistics.moments_in_torch(sums, torch.float32), sums_bytes
        ),
        "tail": Pair(
            lambda: call.forward(sums, x, kind),
            lambda: tail.finish_in_torch(made, sums, x, kind),
            sums_bytes + 2 * map_bytes,
        ),
        "tail backward": Pair(
            lambda: call.backward(grad, sums, x, True),
            lambda: tail.unfinish_in_torch(made, grad, sums, x, True),
            2 * sums_bytes + 2 * map_bytes + float_bytes,
        ),
        "statistics": Pair(
            lambda: steps.add_statistics(back, sums, made.centre, vector, vector, kind),
            lambda: tail.add_statistics_in_torch(made, back, sums, vector, vector).to(kind),
            2 * sums_bytes + sums.numel() * x.element_size(),
        ),
        "poly2": Pair(
            lambda: steps.estimator("poly2", 1.0, grad, x, None, None, single, kind),
            lambda: signs.through_in_torch(POLY2, grad, x, None, single),
            2 * map_bytes + float_bytes + map_bytes,
        ),
        "mask": Pair(
            lambda: steps.estimator("mask", 0.0, grad, None, None, (words, 1), None, kind),
            lambda: grad * signs.unpack_in_torch(words, channels, 1, (0.0, 1.0), kind),
            2 * map_bytes + bits,
        ),
        "signs of values": Pair(
            lambda: steps.signs(x, None, kind), lambda: signs.signs_in_torch(x, None, kind), 2 * map_bytes
        ),
        "signs of bits": Pair(
            lambda: steps.unpack(words, channels, 1, kind),
            lambda: signs.unpack_in_torch(words, channels, 1, (-1.0, 1.0), kind),
            map_bytes + bits,
        ),
    }


def measure(layer: tuple[int, int, int], kind: torch.dtype, copy: float, plan: Plan) -> dict[str, Any]:
    """One row: microseconds of each step, and what they are compared with."""
    side, filters, copies = layer
    row: dict[str, Any] = {
        "layer": f"{side}x{side}x{filters}, {copies} copies",
        "batch": plan.batch,
        "dtype": str(kind),
    }
    row.update(us={}, times_faster={}, share_of_floor={})
    for name, pair in pairs(plan.batch * side * side, filters, copies, kind, plan.device).items():
        if pair.ours() is None:
            raise InputError(f"benchmarks.speed.steps times the CUDA kernels, but they do not serve the step {name!r}")
        works = {"ours": pair.ours, "torch": pair.torch}
        times = time_in_turns({way: partial(_call, work) for way, work in works.items()}, 1, plan.rounds, plan.device)
        ours = times["ours"]["median"]
        row["us"][name] = times
        row["times_faster"][name] = round(times["torch"]["median"] / ours, 2)
        row["share_of_floor"][name] = round(pair.moved / copy / ours, 3)
    return row


def _call(work: Callable[[], object]) -> None:
    work()


def show(row: dict[str, Any]) -> None:
    ours = "  ".join(f"{name} {times['ours']['median']:.1f}" for name, times in row["us"].items())
    print(f"{row['layer']:22} {row['dtype']:15} us: {ours}", flush=True)
    print(
        f"  times faster than torch: {row['times_faster']}\n  share of the floor: {row['share_of_floor']}", flush=True
    )


@torch.no_grad()
def run(plan: Plan, layers: tuple[tuple[int, int, int], ...] = LAYERS) -> dict[str, Any]:
    """All rows."""
    copy = bandwidth(plan)
    record: dict[str, Any] = {"copy_tb_s": round(copy / 1e6, 3), "rows": []}
    for layer in layers:
        for kind in KINDS:
            record["rows"].append(measure(layer, kind, copy, plan))
            show(record["rows"][-1])
    return record


def main() -> None:
    """Run, print, and write benchmarks/results/steps.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--rounds", type=positive, default=9)
    args = parser.parse_args()
    status = serving("benchmarks.speed.steps")
    settings = {"gpu": torch.cuda.get_device_name(), "reason": status.reason, **vars(args)}
    record = run(replace(Plan(), batch=args.batch, rounds=args.rounds))
    print(write("steps", {"settings": settings, **record}))


if __name__ == "__main__":
    run_command(main)
