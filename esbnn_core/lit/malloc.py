"""Keep the memory of a CPU run's large tensors in the process, in place of giving it back to the system."""

import ctypes
import os
import platform

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_ALL = 2**31 - 1


def keeps_freed_memory(trainer: L.Trainer) -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether that was set.

    glibc returns every block above 32 MiB to the system when it is freed, and gets it again, zeroed, page by page, for
    the next tensor. A network that trains on the CPU does so hundreds of times a step: one step of ES-BiDet SSD300 on
    eight images takes 2.4 times as long (docs/guides/detection.md). Kept memory counts as used until the process ends.

    It is set for a run on the CPU under glibc, unless a variable MALLOC_* or GLIBC_TUNABLES is set.
    """
    if not isinstance(trainer.accelerator, CPUAccelerator) or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, _ALL))
