"""How a compiler builds the kernels' parallel loops: with its own OpenMP, with torch's, or not at all.

Apple's clang knows the pragmas, but brings no library and refuses -fopenmp. On macOS torch brings LLVM's library, which
ends a process that holds a second copy of it: there torch's library is the only one that is tried.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

MISSING = "{} builds no OpenMP that works with torch's (CXX may name another compiler)"
"""Why a library has one thread; the place is the compiler's."""

PROBE = """
#ifndef _OPENMP
#error without OpenMP
#endif
extern "C" int probe(int count) {
  int sum = 0;
#pragma omp parallel for reduction(+ : sum) num_threads(2)
  for (int i = 0; i < count; i++) sum += i;
  return sum;
}
"""
CALL = """
import ctypes, sys, torch
torch.set_num_threads(2)
torch.randn(1 << 18).exp_()
sys.exit(ctypes.CDLL(sys.argv[1]).probe(1000) != 499500)
"""
LIMIT = 300
"""Seconds after which a trial has failed."""


@dataclass(frozen=True)
class OpenMP:
    """Flags of one way to OpenMP; none for a build without it.

    Attributes:
        compile: of each source.
        link: of the library, after its objects.
        tried: whether a process with torch has to run it before it is trusted.
    """

    compile: tuple[str, ...] = ()
    link: tuple[str, ...] = ()
    tried: bool = False


def candidates(system: str = sys.platform) -> list[OpenMP]:
    """The ways to OpenMP on an operating system, best first; the name of a library in the cache depends on them."""
    if system != "darwin":
        return [OpenMP(("-fopenmp",), ("-fopenmp",))]
    folder = Path(torch.__file__).parent / "lib"
    return [
        OpenMP(("-Xpreprocessor", "-fopenmp"), (str(library), f"-Wl,-rpath,{library.parent}"), tried=True)
        for pattern in ("libomp*", "lib?omp*")
        for library in sorted(folder.glob(pattern))
    ]


def find(cxx: str, work: Path) -> OpenMP:
    """The first of the candidates that compiler `cxx` builds a parallel loop with, tried in folder `work`, or none."""
    return next((way for way in candidates() if works(cxx, way, work)), OpenMP())


def works(cxx: str, way: OpenMP, work: Path) -> bool:
    """Whether a parallel loop compiles and links; if it has to be tried, also whether it runs after one of torch's."""
    source, target = work / "openmp.cpp", work / "openmp.so"
    source.write_text(PROBE)
    build = [cxx, *way.compile, "-fPIC", "-shared", "-o", str(target), str(source), *way.link]
    commands = [build, [sys.executable, "-c", CALL, str(target)]] if way.tried else [build]
    try:
        return all(subprocess.run(c, capture_output=True, check=False, timeout=LIMIT).returncode == 0 for c in commands)
    except subprocess.TimeoutExpired:  # two libraries that wait for each other
        return False
