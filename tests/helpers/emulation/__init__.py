"""The CUDA kernels' own sources on the CPU: built by g++ with an emulated device (device.h), in place of a GPU."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from esbnn_core.kernels import cuda, training
from esbnn_core.kernels.call import call_of
from esbnn_core.kernels.cuda import division
from esbnn_core.kernels.cuda import training as cuda_training
from esbnn_core.kernels.cuda.launch import CONV, LANES, PACK
from esbnn_core.kernels.cuda.library import SOURCES, Kernel

HERE = Path(__file__).parent
FLAGS = [
    "-std=c++17",
    "-O1",
    "-ftree-vectorize",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Werror",
]
TRAINING = {
    "totals": division.TOTALS.size,
    **dict.fromkeys(("batch_norm", "batch_norm_gradients"), cuda_training.NORM.size),
    **dict.fromkeys(("tail", "tail_gradients"), division.ROWS.size + cuda_training.TAIL.size),
    **{
        name: division.ROWS.size + getattr(cuda_training, name.upper()).size
        for name in ("statistics", "estimator", "signs", "moments")
    },
}
"""Bytes of the arguments of the kernels of training on bits, as Python packs them."""
MORE_FLAGS = "ESBNN_CXXFLAGS"
"""Further compiler flags, e.g. -fsanitize=address."""


def build(folder: Path) -> ctypes.CDLL | None:
    """The emulated kernels of the operators as a library in `folder`; None where there is no g++."""
    handle = _compiled(folder, "kernels.cpp")
    if handle is not None:
        sizes = [handle.emulate_size(which) for which in (0, 1, 2)]
        assert sizes == [CONV.size, PACK.size, LANES.size], "launch.py and the kernels disagree on a struct"
    return handle


def build_training(folder: Path) -> ctypes.CDLL | None:
    """The same for those of training on bits."""
    handle = _compiled(folder, "training.cpp")
    if handle is None:
        return None
    assert handle.emulate_turns() == division.SLOTS
    for name, size in TRAINING.items():
        assert handle.emulate_size(name.encode()) == size, f"training.py and the kernels disagree on that of {name}"
    return handle


def _compiled(folder: Path, source: str) -> ctypes.CDLL | None:
    cxx = shutil.which("g++")
    if cxx is None:
        return None
    target = Path(tempfile.mkdtemp(dir=folder)) / "emulated.so"
    command = [cxx, *FLAGS, "-Wno-unknown-pragmas", *os.environ.get(MORE_FLAGS, "").split(), f"-I{SOURCES}"]
    subprocess.run([*command, "-o", str(target), str(HERE / source)], check=True)
    return ctypes.CDLL(str(target))


@contextlib.contextmanager
def steps_emulated(handle: ctypes.CDLL) -> Iterator["Emulator"]:
    """Training on bits on CPU tensors takes its steps from the emulated kernels."""
    emulator = Emulator(handle)
    with patch.object(cuda, "_serving", lambda *_: emulator), patch.dict(training.BY_DEVICE, cpu=cuda_training):
        yield emulator


@dataclass
class Emulator:
    """A device for launch.py on CPU memory. Copies land when waited for or, eager, at once; warps run either way."""

    handle: ctypes.CDLL
    path: str = "Bits"
    multiprocessors: int = 1
    eager: bool = False
    backwards: bool = False
    launched: list[Kernel] = field(default_factory=list)

    def launch(self, kernel: Kernel, blocks: tuple[int, int], threads: int, arguments: bytes) -> None:
        self.launched.append(kernel)
        settings = (*blocks, threads, int(self.eager), int(self.backwards))
        assert self.handle.emulate(kernel.name.encode(), arguments, *settings) == 0, kernel


def convolve(arguments: dict[str, Any], lanes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """cuda.binary_conv2d with the operator's own arguments; fails where the kernels would leave them to naive."""
    call = call_of(**arguments, lanes=lanes)
    done = cuda.binary_conv2d(call, call.output_size())
    assert done is not None, "the kernels did not serve"
    return done
