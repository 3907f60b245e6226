"""A compiler without OpenMP, such as Apple's clang: torch's library serves, else one thread, and a line says so."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esbnn_core.kernels import backend, cpu
from esbnn_core.kernels.backend import Status
from esbnn_core.kernels.cpu import library, openmp
from tests.helpers import paths, small_library
from tests.helpers.operators import drawn

LINE = "the CPU kernels run on one thread"


@pytest.fixture
def apple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let CXX be a compiler that refuses -march=native, and words of an OpenMP option after any but `allowed`."""
    found = library.compiler()
    if found is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    few = small_library.units(tmp_path)
    monkeypatch.setattr(library, "units", lambda: few)

    def install(allowed: str) -> None:
        wrapper = tmp_path / "clang++"
        wrapper.write_text(
            "#!/bin/bash\n"
            'for word in "$@"; do\n'
            f'  case "$before $word" in *" -march=native" | *" -fopenmp"*) [ "$before" = "{allowed}" ] ||\n'
            '    { echo "clang: error: unsupported option $word" >&2; exit 1; };; esac\n'
            "  before=$word\n"
            "done\n"
            f'exec "{found}" "$@"\n'
        )
        wrapper.chmod(0o755)
        monkeypatch.setenv("CXX", str(wrapper))

    return install


def check_results(status: Status, monkeypatch: pytest.MonkeyPatch, loaded: library.Library) -> None:
    """The portable path that was built, asked for three threads, is naive's in every bit."""
    assert status.serving == loaded.name == "portable"
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for number in range(12):
            arguments = drawn(number)
            with paths.forced("naive"):
                want = torch.ops.esbnn.binary_conv2d(**arguments)
            monkeypatch.setattr(cpu, "choose", lambda: (loaded, status))
            got = torch.ops.esbnn.binary_conv2d(**arguments)
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), number
    finally:
        torch.set_num_threads(before)


def test_without_any_openmp_one_thread_serves_and_a_line_says_so(
    apple: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apple("never")
    found, status = library.choose.__wrapped__()
    assert found is not None and found.handle.esbnn_has_threads() == 0
    printed = capsys.readouterr().err
    assert printed.count("\n") == 2 and printed.count(LINE) == 1 and "compiling the CPU kernels" in printed
    assert "clang++ builds no OpenMP" in printed and "one thread because" in status.reason
    library.choose.__wrapped__()  # as another process would, with the library in the cache
    printed = capsys.readouterr().err
    assert printed.count("\n") == printed.count(LINE) == 1
    check_results(status, monkeypatch, found)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for torch's libomp is the libgomp of its Linux wheel")
def test_on_macos_torchs_own_openmp_serves_apples_clang(
    apple: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = openmp.candidates("darwin")
    if not ways:
        pytest.skip("this torch brings no OpenMP library")
    assert all(way.tried for way in ways) and [way.tried for way in openmp.candidates("linux")] == [False]
    monkeypatch.setattr(openmp, "candidates", lambda: ways)
    apple("-Xpreprocessor")
    found, status = library.choose.__wrapped__()
    assert found is not None and found.handle.esbnn_has_threads() == 1
    assert LINE not in capsys.readouterr().err and "one thread" not in status.reason
    check_results(status, monkeypatch, found)


@pytest.mark.parametrize(
    ("instead", "limit", "trusted"),
    [
        ("return sum + 1", openmp.LIMIT, False),
        ("__builtin_trap()", openmp.LIMIT, False),
        ("return sum", 1e-3, False),
        ("return sum", openmp.LIMIT, True),
    ],
)
def test_what_links_is_trusted_once_it_ran(
    instead: str, limit: float, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = library.compiler()
    if found is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(openmp, "PROBE", openmp.PROBE.replace("return sum", instead))
    without_torch = [line for line in openmp.CALL.splitlines() if "torch." not in line]
    monkeypatch.setattr(openmp, "CALL", "\n".join(without_torch).replace(", torch", ""))
    monkeypatch.setattr(openmp, "LIMIT", limit)
    assert openmp.works(found, openmp.OpenMP(tried=True, compile=("-D_OPENMP",)), tmp_path) is trusted
