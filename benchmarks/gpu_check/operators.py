"""Stage 1: every packed operator on the device against naive on the CPU, in every bit.

Arguments are those of the kernels' tests: layouts and types to pack, geometries and epilogues of all kinds, whole tiles
of networks, each on both tiles. A difference is kept with its place and both values. The rehearsal runs the kernels'
own sources in the tests' emulator.
"""

import ctypes
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_check.kernels import kernels_on
from benchmarks.gpu_check.task import OutOfTime, Task
from esbnn_core.kernels import cuda, reference
from esbnn_core.kernels.call import call_of
from esbnn_core.kernels.cuda import launch
from esbnn_core.kernels.linear import long_row
from tests.helpers.emulation import Emulator, build, convolve
from tests.helpers.operators import KINDS, Args, drawn, in_words, layouts

TILES = (launch.LARGE, launch.SMALL)
NETWORK_LAYERS = ((64, 56, 64, 3), (64, 28, 128, 3), (64, 14, 256, 3), (64, 7, 512, 3), (32, 14, 512, 1))
"""Batch, side, channels and kernel of layers that fill whole tiles."""
REPEATS = 20
"""How often a layer of NETWORK_LAYERS has to give the same bits."""


def emulated(handle: ctypes.CDLL) -> AbstractContextManager[Any]:
    """The operators on CPU tensors are the emulated kernels'."""
    emulator = Emulator(handle)
    return patch.object(cuda, "_serving", lambda *_: emulator)


def moved(task: Task, arguments: Args) -> Args:
    """The same on the device; a tensor keeps its strides."""

    def move(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=task.device).copy_(x)

    return {name: move(value) for name, value in arguments.items()}


def difference(got: Tensor, want: Tensor) -> dict[str, Any] | None:
    """None for the same type, shape and bits; otherwise how many values differ, and the first of them."""
    got, want = got.detach().cpu(), want.detach().cpu()
    if got.dtype != want.dtype or got.shape != want.shape:
        return {"got": f"{got.dtype} {tuple(got.shape)}", "want": f"{want.dtype} {tuple(want.shape)}"}
    # -0.0 and 0.0 are equal, as everywhere in the tests
    wrong = (got != want).nonzero()
    if not len(wrong):
        return None
    place = tuple(wrong[0].tolist())
    return {
        "differing": len(wrong),
        "of": got.numel(),
        "first": place,
        "got": got[place].item(),
        "want": want[place].item(),
    }


class Comparison:
    """Counts comparisons by kind, keeps the count in the record and reports each difference as a fault."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, kind: str, case: Any, got: Tensor, want: Tensor) -> None:
        """Compare one result."""
        count = self.counts.setdefault(kind, {"compared": 0, "equal": 0})
        found = difference(got, want)
        count["compared"] += 1
        count["equal"] += found is None
        if found is not None:
            self.task.record.setdefault("differences", []).append({"kind": kind, "case": str(case), **found})
            self.task.fault(f"{kind} {case} differs from naive: {found}")

    def keep(self) -> None:
        self.task.keep(comparisons=self.counts)


def pack(task: Task, comparison: Comparison) -> None:
    """pack_sign over types, layouts, widths and shifts."""
    g = torch.Generator().manual_seed(0)
    sizes = ((2, 3), (34, 5)) if task.rehearse else ((2, 3), (34, 9), (64, 33), (150, 17), (256, 14))
    for channels, side in sizes:
        shift = torch.randn(channels, generator=g)
        for kind in KINDS:
            x = torch.randn(4, channels, side, side, generator=g).to(kind)
            x.view(-1)[:3] = torch.tensor([0.0, -0.0, float("nan")]).to(kind)
            for number, y in enumerate(layouts(x)):
                there = moved(task, {"y": y, "shift": shift})
                for shifted in (False, True):
                    got = cuda.pack_sign(there["y"], there["shift"] if shifted else None, 2, 1)
                    if got is None:
                        raise RuntimeError(f"the kernels do not serve pack_sign of {kind}")
                    want = reference.pack_sign(y, shift if shifted else None, 2, 1)
                    comparison.add("pack_sign", (channels, side, str(kind), number, shifted), got, want)
    comparison.keep()


def linear(task: Task, comparison: Comparison) -> None:
    """binary_linear through torch.library: bare sums and affines, groups and copies."""
    g = torch.Generator().manual_seed(0)
    for features, groups, copies, outputs in ((33, 1, 1, 5), (64, 2, 2, 16), (384, 1, 4, 96), (200, 4, 1, 40)):
        x = reference.pack_sign(torch.randn(7, 3, features, generator=g), None, groups, -1)
        weight = reference.pack_sign(torch.randn(outputs, features // groups, generator=g), None, 1, -1)
        scale, bias = torch.randn(2, copies * outputs, generator=g)
        for affine in (False, True):
            pair = (scale, bias) if affine else (None, None)
            call = long_row(x, weight, features, groups, copies, *pair)
            y, _ = reference.binary_conv2d(call)
            want = y.permute(0, 2, 3, 1).reshape(7, 3, -1)
            names = ("x", "weight", "features", "groups", "copies", "scale", "bias")
            arguments = dict(zip(names, (x, weight, features, groups, copies, *pair), strict=True))
            got = torch.ops.esbnn.binary_linear(**moved(task, arguments))
            comparison.add("binary_linear", (features, groups, copies, outputs, affine), got, want)
    comparison.keep()


def convolutions(task: Task, comparison: Comparison, numbers: range) -> int:
    """binary_conv2d for drawn arguments, on both tiles, for as long as there is time; returns how many were done."""
    for number in numbers:
        if task.left() < 10:
            return number
        # one kernel for all steps, and now and then one for a set of steps: the first spares the compiler's time
        for specialised, arguments in ((number % 20 == 0, drawn(number)), (number % 10 == 0, in_words(number))):
            want, there = reference.binary_conv2d(call_of(**arguments)), moved(task, arguments)
            lanes = cuda.lanes_of(there["weight"], there["groups"]) if number % 3 else None
            for tile in TILES:
                chosen = patch.object(launch, "tile_for", lambda *_, tile=tile: tile)
                with patch.object(launch, "SPECIALISED", specialised), chosen:
                    y, bits = convolve(there, lanes)
                case = (number, tile.name, "specialised" if specialised else "general")
                comparison.add("binary_conv2d", (*case, "y"), y, want[0])
                comparison.add("binary_conv2d", (*case, "bits"), bits, want[1])
        if number % 10 == 9:
            comparison.keep()
    comparison.keep()
    return len(numbers)


def network_layers(task: Task, comparison: Comparison) -> None:
    """Whole layers of networks through torch.library, and the same bits every time."""
    g = torch.Generator().manual_seed(0)
    for batch, side, channels, kernel in ((1, 4, 64, 3),) if task.rehearse else NETWORK_LAYERS:
        residual = torch.randn(batch, channels, side, side, generator=g).bfloat16()
        scale, bias, prelu = torch.randn(3, channels, generator=g)
        arguments = {
            "x": torch.randint(-(2**31), 2**31, (batch, side, side, channels // 32), generator=g).int(),
            "weight": torch.randint(-(2**31), 2**31, (channels, kernel, kernel, channels // 32), generator=g).int(),
            **{"channels": channels, "stride": (1, 1), "padding": (kernel // 2,) * 2, "pad_value": 0},
            **{"dilation": (1, 1), "groups": 1, "copies": 1, "scale": scale, "bias": bias, "prelu": prelu},
            **{"residual": residual.to(memory_format=torch.channels_last), "rprelu": None, "sign_shift": None},
            **{"sign_groups": 1, "shift": None, "out_dtype": torch.bfloat16},
        }
        want, there = reference.binary_conv2d(call_of(**arguments)), moved(task, arguments)
        first = torch.ops.esbnn.binary_conv2d(**there)
        for part, got, expected in zip(("y", "bits"), first, want, strict=True):
            comparison.add("network layer", (side, channels, kernel, part), got, expected)
        for _ in range(2 if task.rehearse else REPEATS):
            again = torch.ops.esbnn.binary_conv2d(**there)
            for part, got, expected in zip(("y", "bits"), again, first, strict=True):
                comparison.add("network layer again", (side, channels, kernel, part), got, expected)
    comparison.keep()


def run(task: Task) -> None:
    """The stage."""
    comparison = Comparison(task)
    with torch.no_grad(), kernels_on(task, build, emulated):
        task.attempt("pack_sign", lambda: pack(task, comparison))
        task.attempt("network layers", lambda: network_layers(task, comparison))
        task.attempt("binary_linear", lambda: linear(task, comparison))
        done: list[int] = []
        numbers = range(3 if task.rehearse else 150)
        task.attempt("binary_conv2d", lambda: done.append(convolutions(task, comparison, numbers)))
    equal, compared = (sum(count[key] for count in comparison.counts.values()) for key in ("equal", "compared"))
    told = f"{equal:,} of {compared:,} results are naive's in every bit"
    if done and done[0] < len(numbers):
        raise OutOfTime(f"{told}; time for {done[0]} of {len(numbers)} drawn arguments")
    print(told)
