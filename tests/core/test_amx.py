"""The AMX path in every bit: on processors without it, with its tile instructions emulated in C++ (amx_emulated.h)."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from esbnn_core import InputError, create_model, kernels, pack_
from esbnn_core.kernels import Geometry, backend, cpu
from esbnn_core.kernels.backend import Status
from esbnn_core.kernels.cpu import library
from esbnn_core.kernels.cpu.library import Library
from tests.helpers import paths
from tests.helpers.fuzz import FUZZ, Case, cases, signs
from tests.helpers.networks import stir
from tests.helpers.operators import drawn

NAME = "amx-s8"
X86 = platform.machine().lower() in ("x86_64", "amd64")
pytestmark = pytest.mark.skipif(not X86, reason="AMX is part of x86-64 processors")


def compiler() -> str:
    found = library.compiler()
    if found is None:
        pytest.skip("no C++ compiler here")
    return found


def disassembled(target: Path) -> str:
    tool = shutil.which("objdump")
    if tool is None:
        pytest.skip("no objdump here")
    return subprocess.run([tool, "-d", str(target)], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def wide() -> bool:
    """Whether this processor has what the path needs beside the tiles: AVX-512 with VPOPCNTDQ."""
    handle, _ = library._open()
    return handle is not None and dict(library.paths(handle))["avx512-carry-save"]


@pytest.fixture(scope="module")
def cxx(wide: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiler that does not know AMX, but where it is emulated; each source without AMX is compiled once, fast.

    Of the paths that nothing here runs and of ONNX Runtime's operators it makes a table without functions, of training
    nothing.
    """
    folder = tmp_path_factory.mktemp("compiler")
    made = folder / "g++"
    idle = ["avx2", "avx512_popcnt", *([] if wide else ["avx512_carry"])]
    for unit, name in (*zip(idle, idle, strict=True), ("ort_operators", None)):
        table = f'const esbnn::Kernels esbnn::{name}_kernels = {{"{unit}"}};' if name else ""
        (folder / f"{unit}.cpp").write_text(f'#define ESBNN_X86\n#include "{library.SOURCES}/conv.h"\n{table}\n')
    for source in library.SOURCES.glob("training*.cpp"):
        (folder / source.name).touch()
    made.write_text(f"""#!/bin/sh
case "$*" in
*AMX_EMULATED*amx.cpp* | *AMX_EMULATED*driver.cpp*) exec "{compiler()}" "$@" -O1 ;;
{" | ".join(f"*/{unit}.cpp*" for unit in (*idle, "ort_operators", "training*"))}) for object; do :; done # the last word
  exec "{compiler()}" -std=c++17 -fPIC -c "{folder}/$(basename "$object" .o).cpp" -o "$object" ;;
*-mamx*) echo "unrecognized option -mamx-tile" >&2; exit 1 ;;
*" -c "*) for object; do :; done # the last word
  kept="{folder}/$(basename "$object")"
  test -f "$kept" || "{compiler()}" "$@" -O0 -o "$kept" || exit 1
  cp "$kept" "$object" ;;
*) exec "{compiler()}" "$@" ;;
esac
""")
    made.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def emulated(wide: bool, cxx: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library of its own whose AMX path runs here; its loops are cut short so that small layers take all of them."""
    if not wide:
        pytest.skip("the emulated path needs AVX-512 with VPOPCNTDQ")
    folder = tmp_path_factory.mktemp("emulated")
    with pytest.MonkeyPatch.context() as patch:
        more = os.environ.get(library.MORE_FLAGS, "")
        patch.setenv("CXX", str(cxx))
        patch.setenv(library.MORE_FLAGS, f"{more} -DESBNN_AMX_EMULATED")
        patch.setenv("ESBNN_CACHE", str(folder))
        handle, reason = library._open()
    assert handle is not None, reason
    assert library.paths(handle)[0] == (NAME, True)
    return Library(handle, 0, NAME)


@pytest.fixture
def amx(emulated: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "choose", lambda: (emulated, Status(NAME, "emulated", ())))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_every_bit_of_the_epilogue_is_naives(part: int, emulated: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60 * part, 60 * part + 60):
        arguments = drawn(number)
        paths.force("naive", monkeypatch)
        want = torch.ops.esbnn.binary_conv2d(**arguments)
        monkeypatch.setattr(cpu, "choose", lambda: (emulated, Status(NAME, "emulated", ())))
        got = torch.ops.esbnn.binary_conv2d(**arguments)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), number


def sums(c: Case) -> tuple[Tensor, Tensor]:
    """The sums of a drawn geometry, by the operator and by torch."""
    generator = torch.Generator().manual_seed(c.seed)
    x = signs(generator, c.batch, c.groups * c.inner, *c.size)
    weight = signs(generator, c.groups * c.outer, c.inner, *c.kernel)
    geometry = Geometry(c.groups * c.inner, c.stride, c.padding, c.pad_value, c.dilation, c.groups)
    bits, rows = kernels.pack_sign(x, None, c.groups, 1), kernels.pack_sign(weight, None, 1, 1)
    got, _ = kernels.binary_conv2d(bits, rows, geometry)
    ring = F.pad(x, (c.padding[1], c.padding[1], c.padding[0], c.padding[0]), value=float(c.pad_value))
    return got.double(), F.conv2d(ring, weight, None, c.stride, 0, c.dilation, c.groups)


@pytest.mark.slow
@pytest.mark.usefixtures("amx")
def test_sums_of_drawn_geometries_are_torchs() -> None:
    executed = 0

    @settings(max_examples=200, **FUZZ)
    @given(cases())
    def check(c: Case) -> None:
        nonlocal executed
        got, want = sums(c)
        assert torch.equal(got, want)
        executed += 1

    check()
    assert executed >= 150


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("pad_value", [0, -1])
@pytest.mark.parametrize(
    ("channels", "filters", "size", "kernel", "stride", "dilation", "groups"),
    [
        (64, 64, (56, 56), 3, 1, 1, 1),  # rows joined to one run, many parts of it
        (100, 40, (33, 20), 3, 2, 1, 1),  # a tail of channels, a block that is not whole
        (256, 96, (9, 70), 3, 1, 2, 2),  # lines that do not fit whole; dilated; two groups
        (512, 128, (7, 7), 3, 1, 1, 1),  # weights spread in pieces
        (300, 33, (1, 500), 1, 1, 1, 1),  # one long row
        (64, 16, (40, 1), 5, 1, 1, 1),  # columns of one pixel
    ],
)
def test_layers_larger_than_what_is_spread_at_once(
    channels: int,
    filters: int,
    size: tuple[int, int],
    kernel: int,
    stride: int,
    dilation: int,
    groups: int,
    pad_value: int,
) -> None:
    k, s, p, d = ((n, n) for n in (kernel, stride, kernel // 2 * dilation, dilation))
    got, want = sums(Case(2, groups, channels // groups, filters // groups, size, k, s, p, d, pad_value, 0))
    assert torch.equal(got, want)


@pytest.mark.slow
@pytest.mark.usefixtures("amx")
def test_any_number_of_threads_gives_the_same() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([torch.ops.esbnn.binary_conv2d(**drawn(number)) for number in range(12)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize(("name", "options"), [("reactnet_resnet8", {}), ("es_reactnet_resnet8", {"groups": 2})])
@torch.no_grad()
def test_a_whole_packed_network_is_the_latent_one(name: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = stir(create_model(name, num_classes=7, **options))
    x = torch.randn(3, 3, 32, 29, generator=torch.Generator().manual_seed(1))
    want = model(x)
    assert torch.equal(pack_(model)(x), want)
    assert want.isfinite().all() and want.std() > 0


@pytest.mark.slow
def test_the_real_path_is_made_of_tile_instructions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cxx = compiler()
    if not library.supports_amx(cxx, tmp_path):
        pytest.skip(f"{cxx} does not know AMX")
    monkeypatch.delenv(library.MORE_FLAGS, raising=False)
    flags = {source.stem: more for source, more in library.units()}
    command = [cxx, *flags.pop("amx"), "-O0", "-c", str(library.SOURCES / "amx.cpp"), "-o", str(tmp_path / "amx.o")]
    subprocess.run(command, check=True)
    text = disassembled(tmp_path / "amx.o")
    for instruction in ("ldtilecfg", "tilezero", "tileloadd", "tdpbssd", "tilestored", "tilerelease"):
        assert instruction in text
    assert not any(set(library.AMX) & set(more) for more in flags.values())
    # of an inline function that several sources have, the linker takes the first
    assert not any(flag.startswith("-m") for name in list(flags)[:2] for flag in flags[name])


def test_it_is_preferred_where_the_machine_has_it_and_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, reason = library._open()
    if handle is None:
        pytest.skip(reason)
    if "EMULATED" in os.environ.get(library.MORE_FLAGS, ""):
        pytest.skip("the library of this run is emulated")
    name, usable = library.paths(handle)[0]
    assert name == NAME
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text().split()) if information.exists() else set()
    if not {"amx_tile", "amx_int8"} <= flags:
        assert not usable
    monkeypatch.setenv(backend.VARIABLE, NAME)
    if usable:
        assert library.choose.__wrapped__()[1].serving == NAME
    else:
        with pytest.raises(InputError, match=r"ESBNN_BACKEND must be one of naive, .* on this machine, got amx-s8"):
            library.choose.__wrapped__()


@pytest.mark.slow
def test_a_compiler_without_amx_builds_all_the_rest(cxx: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(cxx))
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    found, status = library.choose.__wrapped__()
    assert found is not None and found.name == status.serving != NAME
    assert status.paths[0] == (NAME, False) and status.paths[-1] == ("portable", True)
