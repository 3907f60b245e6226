"""The NEON path in every bit without an Arm processor: cross-compiled, and run by qemu against a reference in C++."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu import library
from tests.helpers import paths

CHECK = Path(__file__).parents[1] / "helpers/native_check.cpp"
CASES = "120"
QEMU, CROSS = "qemu-aarch64", "aarch64-linux-gnu-g++"


def run(*command: str | Path) -> str:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def checked(printed: str) -> dict[str, list[str]]:
    """Cases, values and hash of each path."""
    return {name: rest for name, *rest in (line.split() for line in printed.splitlines())}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the check prints for every path of this machine's own library."""
    loaded, status = cpu.choose()
    cxx = library.compiler()
    if loaded is None or cxx is None:
        pytest.skip(f"no native library: {status.reason}")
    made, target = tmp_path_factory.mktemp("here") / "check", Path(loaded.handle._name)
    more = os.environ.get(library.MORE_FLAGS, "").split()
    run(cxx, "-std=c++17", "-O2", *more, CHECK, target, f"-Wl,-rpath,{target.parent}", "-o", made)
    return checked(run(made, CASES, *paths.usable()[1:]))


def test_every_path_of_this_machine_passes_the_check(here: dict[str, list[str]]) -> None:
    assert list(here) == paths.usable()[1:]
    assert len({tuple(found) for found in here.values()}) == 1
    cases, values, _ = here["portable"]
    assert cases == CASES and int(values) > 800_000


@pytest.mark.slow
def test_neon_passes_it_under_emulation(
    here: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(library.MORE_FLAGS, raising=False)
    for tool, package in ((QEMU, "qemu-user"), (CROSS, "g++-aarch64-linux-gnu")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: apt-get install {package}")
    objects = [tmp_path / f"{source.stem}.o" for source, _ in library.units("aarch64")]
    for made, (source, flags) in zip(objects, library.units("aarch64"), strict=True):
        # the path as it is delivered; what serves beside it is compiled fast
        run(CROSS, "-fopenmp", *flags, *(() if source.stem == "neon" else ("-O0",)), "-c", source, "-o", made)
    target = tmp_path / "check"
    run(CROSS, "-std=c++17", "-O2", "-static", "-fopenmp", CHECK, *objects, "-o", target)
    assert checked(run(QEMU, target, CASES, "neon")) == {"neon": here["portable"]}


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "x86_64", "riscv64"])
def test_each_machine_compiles_the_paths_that_it_has(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.MORE_FLAGS, raising=False)
    flags = {source.stem: more for source, more in library.units(machine)}
    assert list(flags)[:3] == ["portable", "driver", "ort_operators"]
    own = {"aarch64": {"neon"}, "arm64": {"neon"}, "x86_64": set(library.X86), "riscv64": set()}[machine]
    assert set(flags) == {"portable", "driver", "ort_operators", *own}
    for name, more in flags.items():
        assert (name in own) == any(flag.startswith("-m") for flag in more)
        assert "-ffp-contract=off" in more  # Arm compilers join a product and a sum without it
    if machine == platform.machine():
        assert library.units() == library.units(machine)
