"""Stage 3: how fast is a block, a convolution alone, a small batch? The rows of benchmarks.speed.gpu (G1, G2, G3)."""

import torch

from benchmarks.gpu_check.task import Task
from benchmarks.speed import gpu

TINY = gpu.Plan(1, 3, "cpu", blocks=((5, 64),), alone=((5, 64, 3), (4, 64, 1)), small=(1,), copied=1 << 16)
TARGETS = {"G1": 0.65, "G2": 3.0, "G3": 3.0}
"""Share of the memory floor; 10^15 operations a second; times as fast as compiled bf16."""
COMPILED = "torch.compile bf16"
RESERVE = 40.0
"""Seconds that compiling one more block may take."""


def run(task: Task) -> None:
    """The stage."""
    torch.backends.cudnn.benchmark = True
    plan = TINY if task.rehearse else gpu.Plan(rounds=9)
    seconds = 0.0 if task.rehearse else task.left() - RESERVE
    record = gpu.run(plan, seconds, lambda rows: task.keep(**rows), task.attempt)
    task.keep(targets=TARGETS)
    faster = [row["times_faster"] for row in record["G1"] + record["G3"]]
    told = {
        "share of the floor": [row["share_of_floor"] for row in record["G1"]],
        "POPS alone": [row["pops"]["conv to int32"] for row in record["G2"]],
        "times as fast as compiled bf16": [times[COMPILED] for times in faster if COMPILED in times],
    }
    print("; ".join(f"{name}: {f'{min(v)} to {max(v)}' if v else 'not timed'}" for name, v in told.items()))
