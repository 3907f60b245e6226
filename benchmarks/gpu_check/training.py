"""Stage 5: are the steps of training on bits right, what does it keep for backward, and how long is a step (G4, G5)?

The kernels around the sums first, one by one (benchmarks.gpu_check.steps). Then the pieces of
benchmarks.speed.training on the device: bytes that autograd keeps, the peak of memory and the time of whole steps at
growing batches. A step is timed by the wall clock, with a wait for the device at its end.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_check.steps import run_steps
from benchmarks.gpu_check.task import OutOfTime, Task
from benchmarks.speed.training import GIB, NAMES, SIZE, SMALL, gib_kept, steps, throughput
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
    task.row("steps", row)


def run(task: Task) -> None:
    """The stage."""
    torch.backends.cudnn.benchmark = True
    run_steps(task)
    names = ("reactnet_resnet8",) if task.rehearse else NAMES
    sizes = {name: 32 if task.rehearse else SMALL.get(name, SIZE) for name in names}
    for batch in (2,) if task.rehearse else BATCHES:
        for name in names:
            if task.left() < 8:
                raise OutOfTime(
                    f"time for {len(task.record.get('steps', []))} of {len(BATCHES) * len(names)} rows of steps"
                )
            task.attempt(f"{name}, batch {batch}", partial(step_times, task, name, sizes[name], batch))
            if batch != BATCHES[-1]:
                # counted at batches 2 and 4 and continued to 256
                task.attempt(f"{name}, bytes", partial(kept, task, name, 32 if task.rehearse else SIZE))
    task.keep(targets=TARGETS)
    ratios = [row["throughput of bits over plain"] for row in task.record.get("steps", [])]
    print(f"throughput on bits over plain layers: {ratios}")
