"""Compiles, caches, loads and launches the CUDA kernels, and reports which path serves which device and why.

NVRTC compiles the sources beside this file at the first operator call on a CUDA tensor; torch's CUDA wheels bring it
with its Python bindings (package cuda-bindings). Each tile and each set of epilogue steps that a network needs is one
small kernel, a fraction of a second each. The machine code is kept in the cache folder of the CPU library. Where
any of this is missing the plain torch operators (esbnn_core.kernels.reference) serve, and one line says so. Importing
this file does not import the bindings and does not touch a device.
"""

import ctypes
import functools
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esbnn_core.errors import InputError
from esbnn_core.files import cache_folder
from esbnn_core.kernels import backend
from esbnn_core.kernels.backend import Status

SOURCES = Path(__file__).parent
OPTIONS = ("--std=c++17", "--fmad=false")
PATHS = {"Bits": "mma-b1", "Bytes": "mma-s8"}
"""Names of the two products (product.cuh): on the 1-bit matrix instruction, and on bytes."""


@dataclass(frozen=True)
class Kernel:
    """A kernel to compile; the tests' emulator finds it by `name`.

    Attributes:
        function: its name.
        tile: macro TILE, "" for a kernel without tiles.
        path: macro PATH.
        steps: macro STEPS.
        source: name of its source, "" where that is the function's; all functions of a source are compiled together.
    """

    function: str
    tile: str = ""
    path: str = ""
    steps: int = 0
    source: str = ""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.function, self.tile, self.path) if part)

    @property
    def file(self) -> str:
        return f"{self.source or self.function}.cu"

    def macros(self) -> list[str]:
        return [f"-DTILE={self.tile}", f"-DPATH={self.path}", f"-DSTEPS={self.steps}"] if self.tile else []


def path_of(capability: tuple[int, int]) -> tuple[str | None, str]:
    """The product to use on a compute capability ("Bits", "Bytes" or None where there is none), and why."""
    name = f"sm_{capability[0]}{capability[1]}"
    if capability < (8, 0):
        return None, f"{name} has no 1-bit matrix instruction with AND, and none on bytes that the kernels use"
    if capability < (10, 0):
        return "Bits", f"{name} has a 1-bit matrix instruction"
    return "Bytes", f"{name} only emulates the 1-bit matrix instruction: its matrix instruction on bytes is faster"


def _checked(results: tuple[Any, ...]) -> Any:
    """The value of a call of the bindings; RuntimeError where it failed."""
    error, *values = results
    if int(error) != 0:
        raise RuntimeError(getattr(error, "name", str(error)))
    return values[0] if len(values) == 1 else values


def _buffer(size: int) -> bytes:
    """At least `size` bytes for the bindings to write into; they accept no other type.

    Never a single byte: Python has one object for each of these, and writing the final 0 of an empty log into b" "
    would turn every b" " of the process into b"\\0".
    """
    return b" " * (size + 2)


def compiled(kernel: Kernel, architecture: str, options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """Machine code of a kernel for e.g. "sm_90", and the compiler's log; needs NVRTC and no device.

    Raises:
        ImportError: the package cuda-bindings is missing.
        RuntimeError: NVRTC is missing or fails; the text has its log.
    """
    from cuda.bindings import nvrtc

    headers = sorted(SOURCES.glob("*.cuh"))
    texts, names = [header.read_bytes() for header in headers], [header.name.encode() for header in headers]
    source = kernel.file
    program = _checked(
        nvrtc.nvrtcCreateProgram((SOURCES / source).read_bytes(), source.encode(), len(headers), texts, names)
    )
    try:
        words = [f"--gpu-architecture={architecture}", *OPTIONS, *kernel.macros(), *options]
        error = nvrtc.nvrtcCompileProgram(program, len(words), [word.encode() for word in words])[0]
        log = _buffer(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        text = log.decode(errors="replace").strip("\0 \n")
        if int(error) != 0:
            raise RuntimeError(f"NVRTC cannot compile {source} for {architecture}: {text or error.name}")
        size = _checked(nvrtc.nvrtcGetCUBINSize(program))
        code = _buffer(size)
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code[:size], text


@functools.cache
def _digest() -> str:
    """Hash of sources, options and compiler: what the machine code depends on besides the kernel's macros."""
    from cuda.bindings import nvrtc

    digest = hashlib.sha256(f"{_checked(nvrtc.nvrtcVersion())} {OPTIONS}".encode())
    for source in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@functools.cache
def _announce_once(folder: Path) -> None:
    print(f"esbnn: compiling CUDA kernels with NVRTC as they are needed, once, into {folder}", file=sys.stderr)


def cached(kernel: Kernel, architecture: str) -> bytes:
    """As compiled, through the cache folder; files are written whole, so that two processes may compile at once."""
    identity = f"{_digest()} {architecture} {kernel.file} {kernel.macros()}"
    folder = cache_folder()
    target = folder / f"cuda-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.cubin"
    if target.exists():
        return target.read_bytes()
    _announce_once(folder)
    code, _ = compiled(kernel, architecture)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / target.name
            made.write_bytes(code)
            made.replace(target)
    except OSError as error:
        # without a writable folder the kernel is compiled again at every start, and still serves
        print(f"esbnn: a compiled CUDA kernel cannot be kept ({error})", file=sys.stderr)
    return code


class Gpu:
    """A device that the kernels serve.

    Attributes:
        device: of torch.
        path: "Bits" or "Bytes", the product in use.
        multiprocessors: their number.
        architecture: e.g. "sm_90".
    """

    def __init__(self, index: int, path: str) -> None:
        properties = torch.cuda.get_device_properties(index)
        self.device = torch.device("cuda", index)
        self.path = path
        self.multiprocessors: int = properties.multi_processor_count
        self.architecture = f"sm_{properties.major}{properties.minor}"
        self._functions: dict[Kernel, Any] = {}
        self._modules: dict[tuple[str, ...], Any] = {}

    def function(self, kernel: Kernel) -> Any:
        """The loaded function; compiled and loaded at its first use.

        Raises:
            InputError: this would be inside the capture of a CUDA graph, where nothing may be loaded.
        """
        found = self._functions.get(kernel)
        if found is None:
            if torch.cuda.is_current_stream_capturing():
                raise InputError(
                    f"the CUDA kernel {kernel.name} must be loaded before the capture of a CUDA graph, got its first "
                    f"call inside the capture: run the network once on inputs of the same shapes before it"
                )
            from cuda.bindings import driver

            program = (kernel.file, *kernel.macros())
            module = self._modules.get(program)
            if module is None:
                module = _checked(driver.cuModuleLoadData(cached(kernel, self.architecture)))
                self._modules[program] = module
            found = _checked(driver.cuModuleGetFunction(module, kernel.function.encode()))
            self._functions[kernel] = found
        return found

    def launch(self, kernel: Kernel, blocks: tuple[int, int], threads: int, arguments: bytes) -> None:
        """Launch a kernel of one struct on the current stream of the device, which must hold the struct's tensors."""
        if torch.cuda.current_device() == self.device.index:  # the guard costs a third of a launch
            self._launch(kernel, blocks, threads, arguments)
        else:
            with torch.cuda.device(self.device):
                self._launch(kernel, blocks, threads, arguments)

    def _launch(self, kernel: Kernel, blocks: tuple[int, int], threads: int, arguments: bytes) -> None:
        from cuda.bindings import driver

        values = ctypes.create_string_buffer(arguments, len(arguments))
        places = (ctypes.c_void_p * 1)(ctypes.addressof(values))
        function = self.function(kernel)
        stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
        _checked(driver.cuLaunchKernel(function, *blocks, 1, threads, 1, 1, 0, stream, ctypes.addressof(places), 0))


def _fall_back(reason: str, found: tuple[tuple[str, bool], ...]) -> tuple[None, Status]:
    return None, backend.fall_back("CUDA tensors", reason, found)


@functools.cache
def _choose(index: int) -> tuple[Gpu | None, Status]:
    path, why = path_of(torch.cuda.get_device_capability(index))
    found = tuple((name, key == path) for key, name in PATHS.items())
    if path is None:
        return _fall_back(why, found)
    try:
        with torch.cuda.device(index):
            torch.empty(1, device="cuda")  # the context that modules are loaded into
            gpu = Gpu(index, path)
            gpu.function(Kernel("pack"))
    except InputError:
        raise
    except ImportError as error:
        return _fall_back(f"the package cuda-bindings is missing ({error})", found)
    except Exception as error:  # the bindings raise their own kinds for a library that cannot be opened
        return _fall_back(f"the kernels cannot be compiled or loaded ({type(error).__name__}: {error})", found)
    return gpu, Status(PATHS[path], f"{why}; compiled by NVRTC for {gpu.architecture}", found)


def choose(index: int | None = None) -> tuple[Gpu | None, Status]:
    """What serves a CUDA device (the current one without an index); decided once a process and device.

    Raises:
        InputError: first called inside the capture of a CUDA graph.
    """
    forced = backend.forced_reference()
    if forced is not None:
        return None, forced
    if index is None:  # a tensor on a device proves that there is one, and asking takes longer than a launch
        if not torch.cuda.is_available():
            paths = tuple((name, False) for name in PATHS.values())
            return None, Status(backend.REFERENCE, "torch sees no CUDA device", paths)
        index = torch.cuda.current_device()
    return _choose(index)
