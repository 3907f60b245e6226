"""On request: compute-sanitizer's memcheck and racecheck over tests of the kernels; takes minutes."""

import os
import shutil
import subprocess
import sys

from benchmarks.gpu_check.task import Skipped, Task
from esbnn_core.files import ROOT, child_environment

TESTS = (
    "tests/core/test_cuda.py::test_every_bit_is_the_cpus[0]",
    *(f"tests/core/test_cuda_units.py::test_a_tail_is_torchs_in_float64[{case}]" for case in (0, 7)),
)
TOOLS = ("memcheck", "racecheck")


def run(task: Task) -> None:
    """The stage; a rehearsal runs the tests without the tool."""
    if not task.rehearse and shutil.which("compute-sanitizer") is None:
        raise Skipped("compute-sanitizer is not on the PATH")
    for tool in TOOLS:
        before = [] if task.rehearse else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        words = [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *TESTS]
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, **child_environment()}, stdin=subprocess.DEVNULL)
        task.row("tools", {"tool": tool, "exit code": done.returncode})
        if done.returncode:
            task.fault(f"{tool} ended with exit code {done.returncode}: its report is in the log")
    print("neither tool reports an error" if not task.faults else "see the log")
