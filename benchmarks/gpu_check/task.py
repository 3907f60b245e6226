"""What a stage is given: its time, its device, and the json that keeps each result as soon as it is there.

python -m benchmarks.gpu_check.task STAGE --out FOLDER --end TIME [--data FOLDER] [--rehearse]

The runner starts this in a process of its own. The exit code says how the stage ended (OUT_OF_TIME, SKIPPED, otherwise
as usual), the last line of the output why.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import machine
from esbnn_core.files import write_atomically
from esbnn_core.kernels import cuda

OUT_OF_TIME, SKIPPED = 75, 77
"""Exit codes: the stage stopped itself in time and has more to do; it cannot run here."""


class OutOfTime(Exception):
    """The stage has more to do than its time allows, and what it did is kept; the text says how far it came."""


class Skipped(Exception):
    """The stage cannot run on this machine; the text says why."""


@dataclass
class Task:
    """One stage's run.

    Attributes:
        name: of the stage.
        out: folder of its files.
        end: when it has to have ended, by time.monotonic.
        rehearse: tiny sizes on the CPU, the emulator or the CPU's operators in place of the CUDA kernels.
        data: folder of the recipes' images, as data.root.
        record: what its json holds.
        faults: one sentence for each result that is wrong; a stage with one of them fails at its end.
    """

    name: str
    out: Path
    end: float
    rehearse: bool = False
    data: str = "data"
    record: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Of torch: the GPU, or the CPU in a rehearsal."""
        return "cpu" if self.rehearse else "cuda"

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def keep(self, **values: Any) -> None:
        """Put values into the record and write it, whole."""
        self.record.update(values)
        text = json.dumps({**self.record, "faults": self.faults}, indent=1)
        write_atomically(self.out / f"{self.name}.json", f"{text}\n".encode())

    def row(self, table: str, row: dict[str, Any]) -> None:
        """Add a row to a table of the record, write the record and print the row."""
        self.record.setdefault(table, []).append(row)
        self.keep()
        print(f"{table}: {row}", flush=True)

    def fault(self, sentence: str) -> None:
        """Note a wrong result and go on."""
        self.faults.append(sentence)
        self.keep()
        print(f"fault: {sentence}", flush=True)

    def attempt(self, label: str, work: Callable[[], None]) -> bool:
        """Run one part; an error in it is a fault and the next part goes on. Returns whether there was none.

        Raises:
            Exception: the part's own, where the device takes no more work after it.
        """
        try:
            work()
        except (OutOfTime, Skipped):
            raise
        except Exception as error:
            traceback.print_exc()
            self.fault(f"{label}: {last_line(error)}")
            if not self.rehearse:
                try:
                    torch.cuda.synchronize()
                except RuntimeError:
                    raise error from None
            return False
        return True


def last_line(error: BaseException) -> str:
    """The kind of an error and its last line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no text'}"


def describe(rehearse: bool) -> dict[str, Any]:
    """The machine, and what serves CUDA tensors there."""
    found: dict[str, Any] = {"rehearsal": rehearse, "machine": machine()}
    if not rehearse:
        _, status = cuda.choose()
        found["gpu"] = {
            "name": torch.cuda.get_device_name(),
            "path": status.serving,
            "reason": status.reason,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "GiB": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        }
    return found


def run_stage(task: Task, work: Callable[[Task], None]) -> int:
    """Run a stage; returns its exit code after printing the line that says why."""
    began = time.monotonic()
    try:
        task.keep(**describe(task.rehearse))
        work(task)
    except OutOfTime as stop:
        print(stop)
        code = OUT_OF_TIME
    except Skipped as stop:
        print(stop)
        code = SKIPPED
    except Exception as error:
        traceback.print_exc()
        print(last_line(error))
        code = 1
    else:
        code = 0
    task.keep(seconds=round(time.monotonic() - began, 1))
    if task.faults and code != SKIPPED:
        print(f"{task.faults[0]} (faults: {len(task.faults)})")
        code = 1
    return code


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--end", type=float, required=True, help="as time.monotonic has it")
    parser.add_argument("--data", default="data")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    work = importlib.import_module(f"benchmarks.gpu_check.{args.stage}").run
    task = Task(args.stage, args.out, args.end, args.rehearse, args.data)
    sys.exit(run_stage(task, work))


if __name__ == "__main__":
    main()
