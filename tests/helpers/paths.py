"""The implementations of the CPU operators that this machine can run, and how a test forces one."""

import contextlib
import functools
from collections.abc import Iterator

import pytest

from esbnn_core.kernels import cpu
from esbnn_core.kernels.backend import Status
from esbnn_core.kernels.cpu.library import Library, choose, paths

ALL = ("naive", "amx-s8", "avx512-vpopcntdq", "avx512-carry-save", "avx2-tables", "neon", "portable")


def force(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `path` serve for the rest of the test; skips where there is no compiler or the processor lacks it."""
    if path == "naive":
        monkeypatch.setattr(cpu, "choose", lambda: (None, Status("naive", "forced", ())))
        return
    library, status = choose()
    if library is None:
        pytest.skip(f"no native library: {status.reason}")
    names = [name for name, here in paths(library.handle)]
    if (path, True) not in paths(library.handle):
        pytest.skip(f"this processor has no {path}")
    forced = Library(library.handle, names.index(path), path)
    monkeypatch.setattr(cpu, "choose", lambda: (forced, Status(path, "forced", ())))


@functools.cache
def usable() -> list[str]:
    """The implementations that run on this machine, `naive` first."""
    library, _ = choose()
    return ["naive", *(name for name, here in (paths(library.handle) if library else []) if here)]


@contextlib.contextmanager
def forced(path: str) -> Iterator[None]:
    """Let `path` serve inside the with statement."""
    with pytest.MonkeyPatch.context() as patch:
        force(path, patch)
        yield
