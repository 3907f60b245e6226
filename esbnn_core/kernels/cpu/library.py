"""Builds, caches and loads the native CPU kernels, and reports which path serves and why.

The sources beside this file are compiled once by the machine's own C++ compiler, at the first operator call on a CPU
tensor. The library goes into the user's cache folder, under a name made from sources, flags and compiler. Without a
compiler the plain torch operators (esbnn_core.kernels.reference) serve, and one line says so.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from esbnn_core.errors import InputError
from esbnn_core.files import cache_folder, one_at_a_time
from esbnn_core.kernels import backend
from esbnn_core.kernels.backend import VARIABLE, Status
from esbnn_core.kernels.cpu import openmp

SOURCES = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vpopcntdq"]
AMX = ["-mamx-tile", "-mamx-int8"]
FUSED = "-ffp-contract=fast"
X86 = {
    **{"amx": [*AVX512, *AMX], "avx512_popcnt": AVX512, "avx512_carry": AVX512, "avx2": ["-mavx2"]},
    **{"real_avx512": [*AVX512, FUSED], "real_avx2": ["-mavx2", "-mfma", FUSED]},
    **{"training_avx512": AVX512, "training_avx2": ["-mavx2"]},
}
ARM = {"neon": ["-march=armv8-a"], "real_neon": ["-march=armv8-a", FUSED]}
PORTABLE = ("portable", "real_portable", "training_portable")
MORE_FLAGS = "ESBNN_CXXFLAGS"
"""Further compiler flags, e.g. of a sanitizer; part of the library's name in the cache."""


@dataclass(frozen=True, eq=False)
class Library:
    """The loaded library and the path of it in use.

    Attributes:
        handle: the library.
        path: index of the path.
        name: of the path.
    """

    handle: ctypes.CDLL
    path: int
    name: str


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first of g++, clang++ and c++ on the PATH."""
    if named := os.environ.get("CXX"):
        return shutil.which(named)
    return next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)


def units(machine: str | None = None) -> list[tuple[Path, list[str]]]:
    """Source files of the library with the flags of each, for `machine` (a name of platform.machine()) or this one."""
    machine = (machine or platform.machine()).lower()
    define: list[str] = []
    own: dict[str, list[str]] = {}
    if machine in ("x86_64", "amd64"):
        define, own = ["-DESBNN_X86"], X86
    elif machine in ("aarch64", "arm64"):
        define, own = ["-DESBNN_NEON"], ARM
    # portable first: the linker keeps the first copy of an inline function, and that one must run everywhere
    names = [*PORTABLE, "driver", "ort_operators", "program", "real", "training", "norm", *own]
    more = os.environ.get(MORE_FLAGS, "").split()
    return [(SOURCES / f"{name}.cpp", [*FLAGS, *define, *own.get(name, []), *more]) for name in names]


def supports_amx(cxx: str, work: Path) -> bool:
    """Whether compiler and assembler have the tile instructions (g++ 11 and clang 12 do), tried in folder `work`."""
    source = work / "probe.cpp"
    source.write_text("#include <immintrin.h>\nvoid probe() { _tile_zero(0); _tile_dpbssd(0, 1, 2); }\n")
    command = [cxx, *AMX, "-c", str(source), "-o", str(work / "probe.o")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build(cxx: str, folder: Path) -> Path:
    """The library in `folder`, compiled if it is not there, by the first of several processes; written whole.

    Raises:
        OSError: the folder cannot be written.
        subprocess.CalledProcessError: the compiler fails.
    """
    digest = hashlib.sha256()
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    digest.update(f"{version}{platform.machine()}{openmp.candidates()}".encode())
    for header in sorted(SOURCES.glob("*.h")):
        digest.update(header.read_bytes())
    for source, flags in units():
        digest.update(source.read_bytes() + " ".join(flags).encode())
    target = folder / f"cpu-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder):
        if not target.exists():  # another process may have made it meanwhile
            _compile(cxx, target)
    return target


def _compile(cxx: str, target: Path) -> None:
    """Write the library to `target`, through a temporary folder beside it."""
    print(f"esbnn: compiling the CPU kernels with {cxx}, once, into {target.parent}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        threads = openmp.find(cxx, Path(work))

        def compile_unit(unit: tuple[Path, list[str]]) -> str:
            source, flags = unit
            if source.stem == "amx" and not supports_amx(cxx, Path(work)):
                # the path stays in the list, as one that this library cannot use
                flags = [flag for flag in flags if flag not in AMX] + ["-DESBNN_WITHOUT_AMX"]
            made = str(Path(work) / f"{source.stem}.o")
            command = [cxx, *threads.compile, *flags, "-c", str(source), "-o", made]
            subprocess.run(command, capture_output=True, text=True, check=True)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, units()))
        made = Path(work) / target.name
        more = os.environ.get(MORE_FLAGS, "").split()
        command = [cxx, "-shared", *more, "-o", str(made), *objects, *threads.link]
        subprocess.run(command, capture_output=True, text=True, check=True)
        made.replace(target)


def try_build() -> tuple[Path | None, str]:
    """The library's file, compiled if need be, and where it came from; or None and why there is none."""
    cxx = compiler()
    if cxx is None:
        return None, "no C++ compiler was found (install g++ or set CXX)"
    try:
        target = build(cxx, cache_folder())
    except subprocess.CalledProcessError as error:
        text = (error.stderr or "").strip().splitlines()
        return None, f"{cxx} failed ({text[0] if text else error.returncode})"
    except OSError as error:
        return None, f"the library cannot be built or opened ({error})"
    return target, f"compiled by {cxx}, {target}"


def _open() -> tuple[ctypes.CDLL | None, str]:
    """The library and where it came from, or None and why there is none."""
    target, reason = try_build()
    if target is None:
        return None, reason
    try:
        handle = ctypes.CDLL(str(target))
    except OSError as error:
        return None, f"the library cannot be built or opened ({error})"
    handle.esbnn_path.restype = ctypes.c_char_p
    handle.esbnn_lane_words.restype = ctypes.c_int64
    shape = [ctypes.c_int64] * 4
    handle.esbnn_lane_words.argtypes = [ctypes.c_int, *shape]
    handle.esbnn_lanes.argtypes = [ctypes.c_int, ctypes.c_void_p, *shape, ctypes.c_void_p]
    handle.esbnn_spin.restype = ctypes.c_int64
    handle.esbnn_spin.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    handle.esbnn_conv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    handle.esbnn_program.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    pointer, number = ctypes.c_void_p, ctypes.c_int
    counts = [ctypes.c_int64] * 7
    handle.esbnn_pack.argtypes = [number, pointer, number, pointer, *counts, pointer, number]
    handle.esbnn_real_conv.argtypes = [number, *[pointer] * 5, number]
    handle.esbnn_real_conv_pool.argtypes = [number, *[pointer] * 5, ctypes.c_int64, *[pointer] * 3, number]
    handle.esbnn_max_pool.argtypes = [number, *[pointer] * 3, number]
    norm = (pointer, pointer, pointer, pointer, ctypes.c_double)
    handle.esbnn_pool_before_norm.argtypes = [number, pointer, pointer, ctypes.c_int64, *norm, pointer, number]
    threads = "" if handle.esbnn_has_threads() else f", one thread because {openmp.MISSING.format(compiler())}"
    return handle, f"{reason}{threads}"


def paths(handle: ctypes.CDLL) -> list[tuple[str, bool]]:
    """Every path of the library, best first, and whether this processor has it."""
    found: list[tuple[str, bool]] = []
    usable = ctypes.c_int()
    while name := handle.esbnn_path(len(found), ctypes.byref(usable)):
        found.append((name.decode(), bool(usable.value)))
    return found


@functools.cache
def choose() -> tuple[Library | None, Status]:
    """The library with the path to use, or None where the reference serves; decided once a process.

    Raises:
        InputError: ESBNN_BACKEND names a path that does not exist or that this machine does not have.
    """
    forced = backend.forced_reference()
    if forced is not None:
        return None, forced
    wanted = backend.forced()
    handle, reason = _open()
    if handle is None:
        if wanted:
            raise InputError(f"{VARIABLE}={wanted} needs the CPU library, but {reason}: unset it or fix that")
        return None, backend.fall_back("CPU tensors", reason)
    if not handle.esbnn_has_threads():
        print(f"esbnn: the CPU kernels run on one thread: {openmp.MISSING.format(compiler())}", file=sys.stderr)
    found = paths(handle)
    name = backend.select([known for known, here in found if here])
    why = f"{VARIABLE}={wanted}" if wanted else "the best that this processor has"
    index = [known for known, _ in found].index(name)
    return Library(handle, index, name), Status(name, f"{why}; {reason}", tuple(found))
