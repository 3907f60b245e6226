"""Stage 5: are the steps of training on bits right, what does it keep for backward, and how long is a step (G4, G5)?

The kernels around the sums first, one by one (benchmarks.gpu_check.steps). Then the pieces of
benchmarks.speed.training on the device: bytes that autograd keeps, the peak of memory and the time of whole steps at
growing batches. A step is timed by the wall clock, with a wait for the device at its end; forward and backward alone
are timed as CUDA graphs too, which shows what the device does while it need not wait for the host.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_check.steps import run_steps, run_times
from benchmarks.gpu_check.task import OutOfTime, Task, last_line
from benchmarks.speed.graphs import captured, time_in_turns
from benchmarks.speed.training import DEMO, GIB, NAMES, SIZE, SMALL, both_ways, gib_kept, steps, throughput
from benchmarks.timing import interleave

BATCHES = (64, 256)
TARGETS = {"GiB kept, reactnet_resnet18 on bits": 2.0, "throughput": 1.5}


def kept(task: Task, name: str, size: int) -> None:
    """One row of bytes."""
    task.row("kept", {"network": name, "GiB at batch 256": gib_kept(name, task.device, size)})


def step_times(task: Task, name: str, size: int, batch: int) -> None:
    """One row of peaks and times."""
    row: dict[str, Any] = {"network": name, "size": size, "batch": batch, "peak GiB": {}}
    contenders = steps(name, task.device, size, batch)
    if not task.rehearse:
        for way, step in contenders.items():
            step()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            # above what all contenders hold between steps
            row["peak GiB"][way] = round((torch.cuda.max_memory_allocated() - before) / GIB, 2)
    row["us"] = interleave(contenders, 3 if task.rehearse else 5, least=0.0 if task.rehearse else 0.05)
    row["throughput of bits over plain"] = throughput(row["us"])
    row["us, graph"], row["not captured"] = graphs(task, name, size, batch)
    if len(row["us, graph"]) == len(row["us"]):
        row["throughput of bits over plain, graph"] = throughput(row["us, graph"])
    task.row("steps", row)


def graphs(task: Task, name: str, size: int, batch: int) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Times of forward and backward as graphs, and the reason of each that cannot be one."""
    replays, refused = {}, {}
    for way, work in steps(name, task.device, size, batch, both_ways).items():
        try:
            replays[way] = captured(lambda _, work=work: work(), 1, task.device)
        except RuntimeError as error:
            refused[way] = last_line(error)
    rounds = 2 if task.rehearse else 5
    return (time_in_turns(replays, 1, rounds, task.device) if replays else {}), refused


def run(task: Task) -> None:
    """The stage."""
    torch.backends.cudnn.benchmark = True
    run_steps(task)
    # the two whose targets are known at both batches, the demo's small ones, and last the one with most layers
    first = [(name, batch) for batch in BATCHES for name in NAMES[:2]]
    rows = [*first, *((name, 128) for name in DEMO), *((name, BATCHES[0]) for name in NAMES[2:])]
    rows = [("reactnet_resnet8", 2)] if task.rehearse else rows
    for place, (name, batch) in enumerate(rows):
        if task.left() < 8:
            raise OutOfTime(f"time for {place} of {len(rows)} rows of steps")
        size = 32 if task.rehearse else SMALL.get(name, SIZE)
        task.attempt(f"{name}, batch {batch}", partial(step_times, task, name, size, batch))
    run_times(task)
    for name in dict.fromkeys(name for name, _ in rows):
        # counted at batches 2 and 4 and continued to 256
        task.attempt(f"{name}, bytes", partial(kept, task, name, SMALL[name] if name in DEMO else SIZE))
    task.keep(targets=TARGETS)
    ratios = [row["throughput of bits over plain"] for row in task.record.get("steps", [])]
    print(f"throughput on bits over plain layers: {ratios}")
