"""The CUDA kernels compile for every architecture they name, without a GPU, into the instructions they are made for."""

import importlib.util
import itertools
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from esbnn_core import InputError
from esbnn_core.kernels import backend, cuda
from esbnn_core.kernels.cuda import launch, library
from esbnn_core.kernels.cuda.library import Gpu, Kernel
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
F32, F16, BF16, INT32 = 0, 1, 2, 3
WHOLE = launch.WIDE | launch.WORDS


def steps(flags: int, residual: int | None, out: int, copy_words: int) -> int:
    known = 0 if residual is None else launch.RESIDUAL | residual << launch.RESIDUAL_TYPE
    return flags | known | out << launch.OUT_TYPE | copy_words << launch.COPY_WORDS


BLOCK = steps(launch.PRELU | launch.SIGNS | launch.RING | WHOLE, F16, F16, 1)
"""A ReActNet block in half precision, on packed bits of 64 channels, that hands signs on."""

FULL = launch.PRELU | launch.RPRELU | launch.SIGNS | launch.SIGN_SHIFT | launch.RING
STEPS = {
    "block": (BLOCK, ("Large", "Small")),
    "large block": (BLOCK, ("Large",)),
    "every step, float32": (steps(FULL | WHOLE, F32, F32, 2), ("Large",)),
    "every step, odd channels, bfloat16": (steps(FULL, BF16, BF16, 0), ("Small",)),
    "bare sums": (steps(launch.RING | launch.WIDE, None, INT32, 2), ("Large",)),
}
"""What a kernel does by name, and the tiles that it is compiled for."""


def variants(architecture: int) -> list[tuple[str, Kernel]]:
    """What each path multiplies with, in a block; half of the rest on one chip of each path, which they share."""
    path, _ = cuda.path_of((architecture // 10, architecture % 10))
    assert path is not None
    chosen = {
        90: ("block", "every step, float32"),
        100: ("large block", "every step, odd channels, bfloat16", "bare sums"),
    }
    if architecture not in chosen:
        return [("block", Kernel("conv", "Large", path, BLOCK))]
    found = [
        (name, Kernel("conv", tile, path, STEPS[name][0])) for name in chosen[architecture] for tile in STEPS[name][1]
    ]
    return [*found, ("pack", Kernel("pack")), ("lanes", Kernel("lanes"))]


def compiler() -> None:
    """Skips where there is no NVRTC."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings raise their own kinds where the library is not found
        pytest.skip(f"no NVRTC here: {error}")


def disassembler() -> Path:
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        pytest.skip("no triton here, whose wheel brings nvdisasm")
    tool = Path(found.origin).parent / "backends/nvidia/bin/nvdisasm"
    if not tool.exists():
        pytest.skip("this triton brings no nvdisasm")
    return tool


def sections(cubin: bytes) -> bytes:
    """What is executable in an ELF file."""
    headers, size, number = *struct.unpack_from("<Q", cubin, 40), *struct.unpack_from("<2H", cubin, 58)
    found = (struct.unpack_from("<4Q", cubin, headers + size * index + 8) for index in range(number))
    return b"".join(cubin[start : start + length] for flags, _, start, length in found if flags & 4)


def instructions(cubins: Sequence[bytes], architecture: int, folder: Path) -> list[list[str]]:
    """Names of the machine instructions of each cubin, e.g. LDG.E.128.

    In one run: to start the disassembler takes longer than all that it has to do.
    """
    tool, file, codes = disassembler(), folder / "instructions", [sections(cubin) for cubin in cubins]
    file.write_bytes(b"".join(codes))
    command = [str(tool), "-ndf", "--binary", f"SM{architecture}", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = iter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text))
    found = [list(itertools.islice(names, len(code) // 16)) for code in codes]
    assert [16 * len(made) for made in found] == [len(code) for code in codes] and not list(names)
    return found


def usage(log: str) -> tuple[int, int]:
    """Registers of a thread and bytes of shared memory of a block, from ptxas' report."""
    registers, shared = re.search(r"Used (\d+) registers", log), re.search(r"(\d+) bytes smem", log)
    assert registers is not None and shared is not None
    return int(registers[1]), int(shared[1])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_it_compiles_without_spills_into_matrix_instructions(architecture: int, tmp_path: Path) -> None:
    compiler()
    disassembler()
    product = {"Bits": "BMMA", "Bytes": "IMMA"}[cuda.path_of((architecture // 10, architecture % 10))[0] or ""]
    chosen = variants(architecture)
    done = [library.compiled(kernel, f"sm_{architecture}", ("--ptxas-options=-v",)) for _, kernel in chosen]
    disassembled = instructions([code for code, _ in done], architecture, tmp_path)
    for (name, kernel), (_, log), made in zip(chosen, done, disassembled, strict=True):
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log, (name, kernel, log)
        kinds = {word.split(".")[0] for word in made}
        assert len(made) > 100 and not kinds & {"LDL", "STL"}, (name, kernel)
        if kernel.function == "conv":
            registers, shared = usage(log)
            blocks = 4 if kernel.path == "Bits" and kernel.tile == "Large" and kernel.steps == BLOCK else 3
            assert registers * 128 * blocks <= 65536 and shared <= 48 * 1024, (name, kernel, registers, shared)
            assert kinds & {"BMMA", "IMMA"} == {product} and "LDGSTS" in kinds, (name, kernel)
            # nothing of the epilogue is contracted: a product and a sum are rounded apart
            assert "FFMA" not in kinds and ("FMUL" in kinds) == (name != "bare sums"), (name, kernel)
            assert any(word.startswith("STG.E.128") for word in made) == bool(kernel.steps & launch.WIDE)


STEPS_OF_TRAINING = ("tail", "tail_gradients", "statistics", "estimator", "signs", "moments", "totals")
"""Functions of training.cu."""


@pytest.mark.slow
def test_the_steps_of_training_are_one_compilation_without_spills_or_sums_in_any_order(tmp_path: Path) -> None:
    compiler()
    code, log = library.compiled(Kernel("tail", source="training"), "sm_90", ("--ptxas-options=-v",))
    assert log.count("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == len(STEPS_OF_TRAINING), log
    assert sorted(re.findall(r"entry function '(\w+)'", log)) == sorted(STEPS_OF_TRAINING)
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    assert max(registers) <= 128, log  # four blocks of 128 threads a multiprocessor at least
    (made,) = instructions([code], 90, tmp_path)
    kinds = {word.split(".")[0] for word in made}
    assert not kinds & {"LDL", "STL", "FFMA"}
    assert {"LDG.E.128", "LDG.E.64", "STG.E.128", "STG.E.64"} <= set(made)
    # whole numbers alone may be added in any order
    added = {word for word in made if word.startswith(("RED", "ATOM"))}
    assert added and not any("F32" in word or "F64" in word or "F16" in word for word in added), added


def test_the_norm_adds_and_multiplies_floats_apart(tmp_path: Path) -> None:
    """A multiply-add is found in divisions alone, which are calls: running statistics are the CPU's in every bit."""
    compiler()
    code, log = library.compiled(Kernel("batch_norm", source="norm"), "sm_90", ("--ptxas-options=-v",))
    stacks = dict(re.findall(r"properties for (\w+)\n.* (\d+) bytes stack frame", log))
    assert set(stacks) == {"batch_norm", "batch_norm_gradients"} and max(map(int, stacks.values())) <= 16, log
    kinds = {word.split(".")[0] for word in instructions([code], 90, tmp_path)[0]}
    assert {"DMUL", "DADD", "FMUL", "FADD"} <= kinds


def test_each_architecture_has_its_path() -> None:
    paths = {
        c: cuda.path_of(c)[0] for c in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1))
    }
    assert [c for c, path in paths.items() if path is None] == [(7, 5)]
    assert [c for c, path in paths.items() if path == "Bits"] == [(8, 0), (8, 6), (8, 9), (9, 0)]
    assert "sm_75" in cuda.path_of((7, 5))[1]


def test_a_kernel_is_compiled_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler()
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as pool:  # two processes would do the same: whole files or none
        codes = list(pool.map(lambda _: library.cached(Kernel("lanes"), "sm_90"), range(4)))
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 1 and files[0].suffix == ".cubin" and set(codes) == {files[0].read_bytes()}
    monkeypatch.setattr(library, "compiled", lambda *_: pytest.fail("compiled again"))
    assert library.cached(Kernel("lanes"), "sm_90") == codes[0]
    with pytest.raises(BaseException, match="compiled again"):
        library.cached(Kernel("lanes"), "sm_80")


def test_all_functions_of_a_source_share_its_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler()
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    made: list[Kernel] = []
    monkeypatch.setattr(library, "compiled", lambda kernel, _: (made.append(kernel) or kernel.file.encode(), ""))
    for kernel in (*(Kernel(name, source="training") for name in STEPS_OF_TRAINING), Kernel("pack"), Kernel("conv")):
        assert library.cached(kernel, "sm_90") == f"{kernel.source or kernel.function}.cu".encode()
    assert len(made) == len(list(tmp_path.iterdir())) == 3


def test_a_source_that_does_not_compile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler()
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"NVRTC cannot compile conv\.cu for sm_90: (?s:.*)Huge"):
        library.cached(Kernel("conv", "Huge", "Bits", 0), "sm_90")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "file"))
    assert library.cached(Kernel("lanes"), "sm_90")[:4] == b"\x7fELF"
    assert "cannot be kept" in capsys.readouterr().err


def test_without_a_device_naive_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu, status = cuda.choose()
    assert gpu is None and status.serving == "naive" and status.reason == "torch sees no CUDA device"
    assert status.paths == (("mma-b1", False), ("mma-s8", False))
    monkeypatch.setenv(backend.VARIABLE, "naive")
    assert cuda.choose()[1].reason == "ESBNN_BACKEND=naive"


@pytest.mark.parametrize(
    ("capability", "fault", "reason"),
    [
        ((7, 5), None, "sm_75 has no 1-bit matrix instruction with AND"),
        ((9, 0), ImportError("no module"), "the package cuda-bindings is missing (no module)"),
        ((9, 0), RuntimeError("CUDA_ERROR_INVALID_IMAGE"), "RuntimeError: CUDA_ERROR_INVALID_IMAGE"),
    ],
)
def test_what_is_missing_is_named_once(
    capability: tuple[int, int],
    fault: Exception | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object) -> Any:
        assert fault is not None
        raise fault

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "device", broken)
    gpu, status = library._choose.__wrapped__(0)
    assert gpu is None and status.serving == "naive" and reason in status.reason
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_is_loaded_inside_the_capture_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    gpu = Gpu(0, "Bits")
    with pytest.raises(InputError, match="the CUDA kernel conv Large Bits must be loaded before the capture"):
        gpu.function(Kernel("conv", "Large", "Bits", BLOCK))
    assert gpu.architecture == "sm_90" and gpu.multiprocessors == 132


@pytest.mark.slow
def test_an_empty_log_leaves_pythons_own_bytes_alone() -> None:
    compiler()
    # in a process of its own: what the bindings write into a shared b" " would break whatever reads bytes afterwards
    code = (
        "from esbnn_core.kernels.cuda.library import Kernel, compiled\n"
        "code, log = compiled(Kernel('lanes'), 'sm_90')\n"
        "print(repr(log), code[:4], [value for value in range(256) if bytes([value])[0] != value])"
    )
    done = processes.run([sys.executable, "-c", code], ROOT)
    assert done.stdout.split(maxsplit=2) == ["''", r"b'\x7fELF'", "[]\n"]
