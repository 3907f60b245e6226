"""The CUDA kernels' own sources on the CPU: built by g++ with an emulated device (device.h), in place of a GPU."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from esbnn_core.kernels import cuda
from esbnn_core.kernels.call import call_of
from esbnn_core.kernels.cuda.launch import CONV, PACK
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
MORE_FLAGS = "ESBNN_CXXFLAGS"
"""Further compiler flags, e.g. -fsanitize=address."""


def build(folder: Path) -> ctypes.CDLL | None:
    """The emulated kernels as a library in `folder`; None where there is no g++."""
    cxx = shutil.which("g++")
    if cxx is None:
        return None
    target = Path(tempfile.mkdtemp(dir=folder)) / "emulated.so"
    command = [cxx, *FLAGS, "-Wno-unknown-pragmas", *os.environ.get(MORE_FLAGS, "").split(), f"-I{SOURCES}"]
    subprocess.run([*command, "-o", str(target), str(HERE / "kernels.cpp")], check=True)
    handle = ctypes.CDLL(str(target))
    sizes = [handle.emulate_size(which) for which in (0, 1)]
    assert sizes == [CONV.size, PACK.size], "launch.py and the kernels disagree on a struct"
    return handle


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
