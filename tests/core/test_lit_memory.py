"""A CPU run keeps the memory of freed tensors: the kernel hands no page out twice."""

import os
import platform
import sys

import pytest

from tests.helpers import processes

FAULTS = """
import ctypes, resource, sys
import lightning as L
import torch
from esbnn_core.lit.malloc import keeps_freed_memory
from esbnn_core.lit.module import TaskModule

class Fit(TaskModule):
    # a run that a user starts with a Trainer and a module, without the command line
    network, make_optimizer = torch.nn.Linear(1, 1), lambda self, of: torch.optim.SGD(of, 0.1)
    make_scheduler, decay, lr_interval = None, None, "epoch"
    training_step = lambda self, batch: self.network(batch).sum()

# glibc's own values, which the variables of a test run may have changed: M_MMAP_MAX, M_TRIM_THRESHOLD
ctypes.CDLL(None).mallopt(-4, 65536), ctypes.CDLL(None).mallopt(-1, 128 * 1024)
quiet = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False)
trainer = L.Trainer(accelerator="cpu", max_steps=1, **quiet)
kept = sys.argv[1] in ("ask", "keep") and keeps_freed_memory(trainer)
if sys.argv[1] == "fit":
    trainer.fit(Fit(), torch.utils.data.DataLoader(torch.ones(1, 1)))

def faults(mebibytes, rounds):
    for _ in range(5):
        torch.ones(mebibytes * 2**18)  # the first blocks of a size are new in any case
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(mebibytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(int(kept), *([] if sys.argv[1] == "ask" else (faults(40, 10), faults(64, 10))))
"""


def counted(mode: str, **variables: str) -> list[int]:
    """Whether memory is kept and, unless the mode is "ask", the page faults of ten tensors of 40 and of 64 MiB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = processes.run([sys.executable, "-c", FAULTS, mode], env={**environment, **variables})
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, whose malloc this sets")
def test_freed_memory_is_taken_again() -> None:
    (kept, *few), (plain, *many), (_, *fitted) = (counted(mode) for mode in ("keep", "plain", "fit"))
    assert (kept, plain) == (1, 0)
    # a page is 4 KiB; under huge pages one fault brings 2 MiB
    for mebibytes, faults, after_fit, without in zip((40, 64), few, fitted, many, strict=True):
        assert without >= 10 * mebibytes // 2
        assert faults < without / 4 and after_fit < without / 4  # one new block or two


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, whose malloc this sets")
def test_a_variable_of_the_user_stands() -> None:
    assert counted("ask", MALLOC_ARENA_MAX="2") == [0]
    assert counted("ask") == [1]
