"""The native CPU library: equal to naive in every bit of the epilogue, found, built and refused in one sentence."""

import copy
import itertools
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError, create_model, kernels, pack_
from esbnn_core.kernels import Epilogue, Geometry, backend, cpu
from esbnn_core.kernels.cpu import library
from esbnn_core.packed.layers import PackedLayer
from tests.helpers import paths, small_library
from tests.helpers.networks import stir
from tests.helpers.operators import KINDS, drawn

NATIVE = paths.ALL[1:]


@pytest.mark.parametrize("part", range(4))
def test_every_bit_of_the_epilogue_is_naives(part: int) -> None:
    for number in range(60 * part, 60 * part + 60):
        arguments = drawn(number)
        with paths.forced("naive"):
            want = torch.ops.esbnn.binary_conv2d(**arguments)
        for path in paths.usable()[1:]:
            with paths.forced(path):
                for lanes in (None, kernels.lanes_of(arguments["weight"], arguments["groups"])):
                    got = torch.ops.esbnn.binary_conv2d(**arguments, lanes=lanes)
                    for a, b in zip(got, want, strict=True):
                        assert a.dtype == b.dtype and torch.equal(a, b), (path, number)
                    assert got[0].movedim(1, -1).is_contiguous() and got[1].is_contiguous(), path


@pytest.mark.parametrize("channels", [64, 252, 256, 257, 1016, 70000])
def test_sums_at_their_limits(channels: int) -> None:
    """Counters have eight, 16 or 32 bits: where every bit differs, or none, the sum is known."""
    for kernel, filters, size in ((1, 100, (1, 5)), (3, 17, (3, 9))):
        if channels * kernel**2 > 10**5:
            continue
        sides = torch.ones(filters, channels, kernel, kernel)
        sides[::3] = -1
        weight = kernels.pack_sign(sides, None, 1, 1)
        for value in (1, -1):
            x = kernels.pack_sign(torch.full((1, channels, *size), float(value)), None, 1, 1)
            for path in paths.usable()[1:]:
                with paths.forced(path):
                    y, _ = kernels.binary_conv2d(x, weight, Geometry(channels), Epilogue())
                want = value * channels * kernel**2 * sides[:, 0, 0, 0]
                assert torch.equal(y, want[None, :, None, None].expand_as(y).to(y.dtype)), path


@pytest.mark.parametrize("filters", [16, 33, 48, 64, 100, 144])
def test_rows_and_filters_that_fill_no_tile(filters: int) -> None:
    """Widths around the pixels of a tile, filters around its blocks, against torch on the signs."""
    g = torch.Generator().manual_seed(filters)
    for width, stride, groups, kernel in itertools.product((1, 2, 7, 9, 18), (1, 2), (1, 2), (1, 3)):
        if groups == 2 and filters % 2:
            continue
        sides = torch.randint(2, (filters, 40, kernel, kernel), generator=g) * 2.0 - 1
        signs = torch.randint(2, (2, 40 * groups, 4, width), generator=g) * 2.0 - 1
        geometry = Geometry(40 * groups, stride=(stride, stride), padding=(kernel // 2, kernel // 2), groups=groups)
        weight, x = kernels.pack_sign(sides, None, 1, 1), kernels.pack_sign(signs, None, groups, 1)
        want = torch.nn.functional.conv2d(signs, sides, None, stride, kernel // 2, groups=groups)
        for path in paths.usable()[1:]:
            with paths.forced(path):
                y, _ = kernels.binary_conv2d(x, weight, geometry, Epilogue())
            assert torch.equal(y, want.to(y.dtype)), (path, width, stride, groups, kernel)


def test_packing_is_naives_for_every_layout() -> None:
    g = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45])
    for channels, size, groups in itertools.product(
        (2, 16, 34, 64, 150), ((1, 1), (3, 5), (6, 1), (7, 16), (9, 33)), (1, 2)
    ):
        x = torch.randn(2, channels, *size, generator=g)
        x.view(-1)[: len(special)] = special[: x.numel()]
        layouts = [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:, :, ::2], x.expand(2, -1, -1, -1)]
        for y, shift in itertools.product(layouts, (None, torch.randn(channels, generator=g))):
            for tensor, dim in ((y, 1), (y.movedim(1, -1), -1), (y.movedim(1, -1).contiguous(), -1)):
                with paths.forced("naive"):
                    want = kernels.pack_sign(tensor, shift, groups, dim)
                for path in paths.usable()[1:]:
                    with paths.forced(path):
                        assert torch.equal(kernels.pack_sign(tensor, shift, groups, dim), want), path


@pytest.mark.parametrize("path", NATIVE)
def test_any_number_of_threads_gives_the_same(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.force(path, monkeypatch)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([torch.ops.esbnn.binary_conv2d(**drawn(number)) for number in range(8)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(
            torch.equal(*pair) for a, b in zip(other, results[0], strict=True) for pair in zip(a, b, strict=True)
        )


@torch.no_grad()
def test_lanes_follow_the_bits_through_loading() -> None:
    one, other = (pack_(stir(create_model("es_reactnet_resnet8", groups=2), seed)) for seed in (0, 1))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want = one(x)
    assert not any("lanes" in key for key in one.state_dict())
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), want)
    # another device walks other lanes: those of this one do not go along
    assert not any("lanes" in key for key, _ in copy.deepcopy(other).to("meta").named_buffers())
    for layer in other.modules():
        if isinstance(layer, PackedLayer):
            layer.lanes = None
    assert torch.equal(other(x), want)


@pytest.mark.parametrize("path", NATIVE)
def test_lanes_of_another_device_are_not_walked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.force(path, monkeypatch)
    for number in range(12):
        arguments = drawn(number)
        lanes = kernels.lanes_of(arguments["weight"], arguments["groups"])
        assert lanes is not None
        want = torch.ops.esbnn.binary_conv2d(**arguments, lanes=lanes)
        for foreign in (lanes.flip(0)[:-1], lanes.flip(0)[None], lanes.new_zeros(0)):
            got = torch.ops.esbnn.binary_conv2d(**arguments, lanes=foreign)
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_lanes_of_another_path_are_not_walked() -> None:
    for number in range(12):
        arguments = drawn(number)
        with paths.forced("naive"):
            want = torch.ops.esbnn.binary_conv2d(**arguments)
        for maker, walker in itertools.product(paths.usable()[1:], repeat=2):
            with paths.forced(maker):
                lanes = kernels.lanes_of(arguments["weight"], arguments["groups"])
            with paths.forced(walker):
                got = torch.ops.esbnn.binary_conv2d(**arguments, lanes=lanes)
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), (maker, walker)


def test_other_dtypes_stay_with_naive() -> None:
    arguments = {**drawn(3), "out_dtype": None}
    doubled = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}
    y, _ = torch.ops.esbnn.binary_conv2d(**doubled)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), torch.ops.esbnn.binary_conv2d(**arguments)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_half_numbers_widen_and_round_as_torch_does(
    kind: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.force(path, monkeypatch)
    g = torch.Generator().manual_seed(0)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).short().view(kind)  # all bit patterns
    every = every[every.isfinite()]
    every = every[: len(every) // 32 * 32]
    # numbers of all sizes, and those that lie in the middle between two of the narrow type
    wide = torch.randint(-(2**31), 2**31 - 1, (2**16,), generator=g, dtype=torch.int64).int().view(torch.float32)
    middle = (every.float()[1:] + every.float()[:-1]) / 2
    wide = torch.cat([wide[wide.isfinite()], middle, torch.tensor([65519.0, 65520.0, 1e38, -1e38, 6e-8, 2.9e-8])])
    wide = wide[: len(wide) // 32 * 32]
    for residual, out_dtype in ((every, torch.float32), (wide, kind)):
        pixels = residual.view(1, -1, 1, 32).permute(0, 3, 1, 2)  # (1, 32, P, 1)
        x, weight = torch.zeros(1, pixels.shape[2], 1, 1, dtype=torch.int32), torch.zeros(32, 1, 1, 1).int()
        nothing = torch.zeros(32)
        epilogue = Epilogue(nothing, nothing, residual=pixels, out_dtype=out_dtype)
        y, _ = kernels.binary_conv2d(x, weight, Geometry(1), epilogue)
        assert y.dtype == out_dtype and torch.equal(y, pixels.to(out_dtype))


def test_a_machine_without_compiler_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path))
    found, status = library.choose.__wrapped__()
    assert found is None and status.serving == "naive" and "no C++ compiler was found" in status.reason
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv(backend.VARIABLE, "portable")
    with pytest.raises(InputError, match="ESBNN_BACKEND=portable needs the CPU library, but no C"):
        library.choose.__wrapped__()


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no space left" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    found, status = library.choose.__wrapped__()
    assert found is None and "failed (no space left)" in status.reason
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_backend_can_be_forced_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "naive")
    assert library.choose.__wrapped__()[1].serving == "naive"
    if cpu.choose()[0] is None:
        pytest.skip("no native library here")
    monkeypatch.setenv(backend.VARIABLE, "portable")
    found, status = library.choose.__wrapped__()
    assert found is not None and found.name == status.serving == "portable"
    monkeypatch.setenv(backend.VARIABLE, "sse")
    with pytest.raises(InputError, match=r"ESBNN_BACKEND must be one of naive, .*portable on this machine, got sse"):
        library.choose.__wrapped__()


@pytest.mark.slow
def test_one_of_two_processes_builds_for_both(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library.compiler() is None:
        pytest.skip("no C++ compiler here")
    few = small_library.units(tmp_path_factory.mktemp("sources"))
    monkeypatch.setattr(library, "units", lambda: few)
    calls, cxx, cache = tmp_path / "calls", tmp_path / "c++", tmp_path / "cache"
    cxx.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {library.compiler()} "$@"\n')
    cxx.chmod(0o755)
    monkeypatch.setenv("CXX", str(cxx))
    monkeypatch.setenv("ESBNN_CACHE", str(cache))
    monkeypatch.delenv(backend.VARIABLE, raising=False)

    def build() -> None:
        os._exit(0 if library.choose.__wrapped__()[1].serving == "portable" else 1)

    forked = multiprocessing.get_context("fork")
    both = [forked.Process(target=build) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert [p.suffix for p in cache.iterdir()] == [".so"]
    compiled = [line for line in calls.read_text().splitlines() if line.split(" -c ")[-1].startswith(str(few[0][0]))]
    assert len(compiled) == 1
