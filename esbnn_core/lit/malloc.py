"""What the C library does with the memory of a CPU run's large tensors."""

import ctypes
import os
import platform

import lightning as L
from lightning.pytorch.accelerators import CPUAccelerator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_ALL = 2**31 - 1


def keeps_freed_memory(trainer: L.Trainer) -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether that was set.

    glibc gives every block above 32 MiB back when it is freed and takes it anew, zeroed, page by page, for the next
    tensor. A network that trains on the CPU frees and takes hundreds of them a step: one step of ES-BiDet SSD300 on
    eight images takes 2.4 times as long (docs/guides/detection.md). Kept memory counts as used until the process ends.

    Only a run on the CPU, only under glibc, and only where no variable MALLOC_* of glibc says what is wanted.
    """
    if not isinstance(trainer.accelerator, CPUAccelerator) or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, _ALL))
