"""Which kernels a stage runs: the GPU's own or, in a rehearsal, the same sources in the tests' emulator."""

import contextlib
import ctypes
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.task import Skipped, Task
from esbnn_core.kernels import cuda


@contextlib.contextmanager
def kernels_on(
    task: Task,
    build: Callable[[Path], ctypes.CDLL | None],
    emulate: Callable[[ctypes.CDLL], AbstractContextManager[Any]],
) -> Iterator[None]:
    """Let the CUDA kernels serve: the GPU's, or in a rehearsal the emulated ones on CPU tensors.

    Args:
        task: the stage's.
        build: compiles the emulated kernels in a folder; None without a compiler.
        emulate: lets them serve.

    Raises:
        RuntimeError: the kernels do not serve this GPU, with their reason.
        Skipped: a rehearsal without g++.
    """
    if not task.rehearse:
        gpu, status = cuda.choose()
        if gpu is None:
            raise RuntimeError(f"the CUDA kernels do not serve this GPU: {status.reason}")
        yield
        return
    handle = _built(build)
    if handle is None:
        raise Skipped("no g++ here to compile the emulated kernels")
    with emulate(handle):
        yield


@functools.cache
def _built(build: Callable[[Path], ctypes.CDLL | None]) -> ctypes.CDLL | None:
    """Compiled once a process; what is loaded outlives its folder."""
    with tempfile.TemporaryDirectory() as folder:
        return build(Path(folder))
