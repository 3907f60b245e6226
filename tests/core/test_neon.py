"""The NEON path in every bit without an Arm processor: cross-compiled, and run by qemu.

Against a reference in C++, and the program of docs/examples/cpp on ONNX Runtime's own library for aarch64.
"""

import os
import platform
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from esbnn_core import create_model, pack_
from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu import library
from tests.helpers import paths
from tests.helpers.networks import stir

CHECK, STEPS = (Path(__file__).parents[1] / "helpers" / name for name in ("native_check.cpp", "steps_check.cpp"))
EXAMPLE = Path(__file__).parents[2] / "docs/examples/cpp/classify.cpp"
KERNELS = Path(library.__file__).parent
CASES = "120"
WHEEL = "ESBNN_AARCH64_ONNXRUNTIME"
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
    return checked_here(CHECK, CASES, tmp_path_factory.mktemp("here"))


def checked_here(source: Path, cases: str, folder: Path) -> dict[str, list[str]]:
    loaded, status = cpu.choose()
    cxx = library.compiler()
    if loaded is None or cxx is None:
        pytest.skip(f"no native library: {status.reason}")
    made, target = folder / "check", Path(loaded.handle._name)
    more = os.environ.get(library.MORE_FLAGS, "").split()
    run(cxx, "-std=c++17", "-O1", *more, source, target, f"-Wl,-rpath,{target.parent}", "-o", made)
    return checked(run(made, cases, *paths.usable()[1:]))


@pytest.mark.slow
def test_every_path_of_this_machine_passes_the_check(here: dict[str, list[str]]) -> None:
    assert list(here) == paths.usable()[1:]
    assert len({tuple(found) for found in here.values()}) == 1
    cases, values, _ = here["portable"]
    assert cases == CASES and int(values) > 800_000


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The library's sources compiled for aarch64, for a program or a library."""
    for tool, package in ((QEMU, "qemu-user"), (CROSS, "g++-aarch64-linux-gnu")):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: apt-get install {package}")
    folder = tmp_path_factory.mktemp("aarch64")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(library.MORE_FLAGS, raising=False)
        units = library.units("aarch64")
    for source, flags in units:
        # the path as it is delivered; what serves beside it is compiled fast
        fast = () if source.stem == "neon" else ("-O0",)
        run(CROSS, "-fopenmp", "-fPIC", *flags, *fast, "-c", source, "-o", folder / f"{source.stem}.o")
    return [folder / f"{source.stem}.o" for source, _ in units]


@pytest.mark.slow
def test_neon_passes_it_under_emulation(here: dict[str, list[str]], objects: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "check"
    run(CROSS, "-std=c++17", "-O1", "-static", "-fopenmp", CHECK, *objects, "-o", target)
    assert checked(run(QEMU, target, CASES, "neon")) == {"neon": here["portable"]}


@pytest.mark.slow
def test_steps_between_units_are_the_same_on_every_path(objects: list[Path], tmp_path: Path) -> None:
    ours, target = checked_here(STEPS, "100", tmp_path), tmp_path / "steps"
    assert list(ours) == paths.usable()[1:] and len({tuple(found) for found in ours.values()}) == 1
    run(CROSS, "-std=c++17", "-O1", "-static", "-fopenmp", STEPS, *objects, "-o", target)
    assert checked(run(QEMU, target, "100", "neon", "portable")) == dict.fromkeys(
        ["neon", "portable"], ours["portable"]
    )
    assert int(ours["portable"][1]) > 700_000


def runtime(folder: Path) -> Path:
    """libonnxruntime.so of the wheel for aarch64 that an environment variable names."""
    wheel = os.environ.get(WHEEL, "")
    if not Path(wheel).is_file():
        pytest.skip(
            f"{WHEEL} names no file: pip download onnxruntime --no-deps --only-binary=:all: "
            f"--platform=manylinux_2_28_aarch64, then set it to the wheel"
        )
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.startswith("onnxruntime/capi/libonnxruntime.so"))
        return Path(packed.extract(name, folder))


def arm_root(folder: Path) -> Path:
    """What qemu shows a program as /: the cross-compiler's libraries, and a processor for ONNX Runtime to find."""
    (folder / "proc").mkdir(parents=True)
    (folder / "sys/devices/system/cpu").mkdir(parents=True)
    (folder / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    known = {"processor": "0", "Features": "fp asimd", "CPU implementer": "0x41", "CPU architecture": "8"}
    known |= {"CPU variant": "0x0", "CPU part": "0xd03", "CPU revision": "4"}
    (folder / "proc/cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in known.items()))
    for name in ("possible", "present", "online"):
        (folder / "sys/devices/system/cpu" / name).write_text("0\n")
    return folder


@pytest.mark.slow
def test_the_program_in_cpp_prints_the_networks_class(objects: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from esbnn_core.onnx import export_onnx

    opened, operators, program = runtime(tmp_path), tmp_path / "operators.so", tmp_path / "classify"
    run(CROSS, "-shared", "-fopenmp", *objects, "-o", operators)
    run(CROSS, "-std=c++17", "-O2", "-I", KERNELS, EXAMPLE, "-ldl", "-o", program)
    torch.manual_seed(0)
    network = pack_(stir(create_model("es_reactnet_resnet8", groups=2), 0))
    export_onnx(network, tmp_path / "net.onnx")
    image, root = tmp_path / "image.ppm", arm_root(tmp_path / "root")
    for height, width in ((32, 32), (20, 36)):
        pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(width))
        image.write_bytes(f"P6\n{width} {height}\n255\n".encode() + pixels.to(torch.uint8).numpy().tobytes())
        want = network((pixels / 255).permute(2, 0, 1)[None])[0].detach()
        number, value = run(QEMU, "-L", root, program, opened, operators, tmp_path / "net.onnx", image).split()
        assert int(number) == int(want.argmax()) and abs(float(value) - float(want.max())) < 1e-4


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "x86_64", "riscv64"])
def test_each_machine_compiles_the_paths_that_it_has(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.MORE_FLAGS, raising=False)
    flags = {source.stem: more for source, more in library.units(machine)}
    everywhere = [*library.PORTABLE, "driver", "ort_operators", "program", "real", "training", "norm"]
    assert list(flags)[: len(everywhere)] == everywhere
    arm = {"neon", "real_neon"}
    own = {"aarch64": arm, "arm64": arm, "x86_64": set(library.X86), "riscv64": set()}[machine]
    assert set(flags) == {*everywhere, *own}
    for name, more in flags.items():
        assert (name in own) == any(flag.startswith("-m") for flag in more)
        # Arm compilers join a product and a sum without it
        contract = [flag for flag in more if flag.startswith("-ffp-contract=")][-1]
        assert contract == f"-ffp-contract={'fast' if name.startswith('real_') and name in own else 'off'}"
    if machine == platform.machine():
        assert library.units() == library.units(machine)
