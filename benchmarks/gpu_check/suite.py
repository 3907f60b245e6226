"""Stage 6: the test suite's own tests of the CUDA kernels on the device, each outcome kept as it comes.

What the stages before do not reach: streams, captures, refusals, more than 2^31 values, the layers of whole networks.
The drawn arguments, which `operators` has compared, are left out.
"""

import importlib.util
from typing import Any

from benchmarks.gpu_check.task import Skipped, Task
from esbnn_core.files import ROOT

FILES = ("tests/core/test_cuda.py", "tests/core/test_cuda_units.py")


class Recorder:
    """A plugin of pytest that puts the outcome of every test into the record.

    Args:
        task: whose record.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """pytest's hook, called for the set-up, the call and the end of each test."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            self.task.keep(tests=self.counts)
        if report.outcome == "failed":
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self.task.fault(f"{report.nodeid}: {lines[-1][2:].strip() if lines else 'failed'}")


def run(task: Task) -> None:
    """The stage; the files skip themselves in a rehearsal, without a GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed here")
    import pytest

    recorder = Recorder(task)
    # without the options of setup.cfg's addopts nothing of the repository's plugins is needed
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-k",
        "not every_bit_is_the_cpus",
        "--rootdir",
        str(ROOT),
        *(str(ROOT / file) for file in FILES),
    ]
    code = int(pytest.main(words, plugins=[recorder]))
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {code}")
    print(f"tests: {recorder.counts}")
