"""How fast is a binary block on a GPU? Fused block, convolution alone and small batches against torch (targets G1-G3).

python -m benchmarks.speed.gpu [--rounds 15] [--batch 256] [--seconds 300]

A block is sign -> convolution -> affine -> PReLU -> + residual, bfloat16 channels_last in and out. Ours reads packed
bits and writes packed bits. Every contender runs inside a CUDA graph over several inputs and outputs, for large
batches more than the cache holds, so that neither Python nor the cache is measured. Medians over rounds in which all
take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.command import positive, run_command
from benchmarks.speed.graphs import Work, captured, spent, time_in_turns
from benchmarks.speed.parts import Block
from benchmarks.timing import medians, write
from esbnn_core import kernels
from esbnn_core.errors import InputError
from esbnn_core.kernels import SUMS, Epilogue, Geometry, cuda
from esbnn_core.kernels.backend import Status

STAGES = ((56, 64), (28, 128), (14, 256), (7, 512))
"""Side and channels of ReActNet-18's four stages at 224x224; all 3x3."""

ALONE = ((28, 128, 3), (14, 256, 3), (7, 512, 3), (14, 512, 3), (14, 512, 1))
"""Side, channels and kernel of the convolutions timed alone."""

CACHE, SETS = 256 << 20, 64
"""Bytes that the inputs of one contender should exceed together (several second-level caches); most inputs."""


class Case:
    """A block's parameters, and enough inputs to exceed the cache; on the CPU, for a rehearsal, two."""

    def __init__(self, batch: int, side: int, channels: int, kernel: int, device: str = "cuda") -> None:
        g = torch.Generator(device=device).manual_seed(0)
        self.geometry = Geometry(channels, padding=(kernel // 2, kernel // 2))
        shape = (batch, channels, side, side)
        self.values = batch * channels * side * side
        self.macs = self.values * channels * kernel * kernel
        count = 2 if device == "cpu" else max(2, min(SETS, -(-CACHE // (2 * self.values))))
        self.x = [
            torch.randn(shape, generator=g, device=device).bfloat16().to(memory_format=torch.channels_last)
            for _ in range(count)
        ]
        latent = torch.randn(channels, channels, kernel, kernel, generator=g, device=device)
        self.scale, self.bias, self.slope = torch.rand(3, channels, generator=g, device=device).unbind()
        self.real = Block(torch.where(latent >= 0, 1.0, -1.0), self.scale, self.bias, self.slope).bfloat16().eval()
        self.real = self.real.to(memory_format=torch.channels_last)
        self.weight = kernels.pack_sign(latent, None, 1, 1)
        lanes = kernels.lanes_of(self.weight, 1)
        if device == "cuda" and (lanes is None or lanes.dim() != 2):
            raise InputError("benchmarks.speed.gpu times the CUDA kernels, but esbnn_core.kernels did not reach them")
        self.lanes = lanes
        self.bits = [kernels.pack_sign(x, None, 1, 1) for x in self.x]

    def ours(self, x: Tensor, epilogue: Epilogue) -> Tensor:
        return kernels.binary_conv2d(x, self.weight, self.geometry, epilogue, lanes=self.lanes)[0]

    def fused(self, residual: Tensor) -> Epilogue:
        return Epilogue(self.scale, self.bias, self.slope, residual, sign_groups=1, out_dtype=torch.bfloat16)

    def check(self) -> None:
        """The first image's block against the CPU's operator, in every bit."""
        bits, epilogue = self.bits[0][:1], self.fused(self.x[0][:1])
        got = self.ours(bits, epilogue)
        there = Epilogue(*(value.cpu() if isinstance(value, Tensor) else value for value in epilogue))
        want, _ = kernels.binary_conv2d(bits.cpu(), self.weight.cpu(), self.geometry, there)
        if not torch.equal(got.cpu(), want):
            raise InputError(f"the CUDA block of {self.geometry.channels} channels differs from the CPU's: not timed")


@dataclass(frozen=True)
class Plan:
    """What is timed; the defaults are the targets' own sizes.

    Attributes:
        batch: of G1 and G2.
        rounds: turns of each contender.
        device: "cuda", or "cpu" for a rehearsal, whose times mean nothing.
        blocks: sides and channels of G1 and G3.
        alone: sides, channels and kernels of G2.
        small: batches of G3.
        copied: bytes of the copy that the memory floor comes from.
    """

    batch: int = 256
    rounds: int = 15
    device: str = "cuda"
    blocks: tuple[tuple[int, int], ...] = STAGES
    alone: tuple[tuple[int, int, int], ...] = ALONE
    small: tuple[int, ...] = (1, 8)
    copied: int = 1 << 30


def bandwidth(plan: Plan) -> float:
    """Bytes a microsecond, read plus written, of a copy on the device."""
    source = torch.randint(0, 255, (plan.copied,), dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    times = [spent(copy, 1, plan.device) for _ in range(12)]
    return 2 * source.numel() / statistics.median(times[2:])


def timed(contenders: dict[str, Work], case: Case, plan: Plan) -> dict[str, dict[str, float]]:
    """Microseconds of one call of each contender, from CUDA graphs that take turns."""
    sets = len(case.x)
    replays = {name: captured(work, sets, plan.device) for name, work in contenders.items()}
    return time_in_turns(replays, sets, plan.rounds, plan.device)


def compiled(case: Case) -> Work:
    """The block in torch.compile's strongest setting without a CUDA graph of its own; takes half a minute."""
    torch._dynamo.reset()
    function = torch.compile(case.real, mode="max-autotune-no-cudagraphs")
    for _ in range(2):
        function(case.x[0], case.x[1])
    return lambda i: function(case.x[i], case.x[i])


def block(side: int, channels: int, batch: int, copy: float, plan: Plan, strongest: bool = False) -> dict[str, Any]:
    """One row of G1 or G3; `strongest` adds the compiled block."""
    case = Case(batch, side, channels, 3, plan.device)
    case.check()
    contenders: dict[str, Work] = {
        "fused block": lambda i: case.ours(case.bits[i], case.fused(case.x[i])),
        "fused block, packing": lambda i: case.ours(case.x[i], case.fused(case.x[i])),
        "eager bf16": lambda i: case.real(case.x[i], case.x[i]),
    }
    if strongest:
        contenders["torch.compile bf16"] = compiled(case)
    times = timed(contenders, case, plan)
    moved = case.values * (2 + 2 + 1 / 8 + 1 / 8)  # residual, y, bits in, bits out
    return {
        "layer": f"{side}x{side}x{channels} 3x3",
        "batch": batch,
        "us": times,
        "floor_us": round(moved / copy, 2),
        "share_of_floor": round(moved / copy / times["fused block"]["median"], 3),
        "times_faster": {
            name: round(times[name]["median"] / times["fused block"]["median"], 2) for name in times if "bf16" in name
        },
    }


def alone(side: int, channels: int, kernel: int, plan: Plan) -> dict[str, Any]:
    """One row of G2: the convolution alone, to int32 sums and to bfloat16 with its affine; a MAC is 2 operations."""
    case = Case(plan.batch, side, channels, kernel, plan.device)
    affine = Epilogue(case.scale, case.bias, out_dtype=torch.bfloat16)
    contenders: dict[str, Work] = {
        "conv to int32": lambda i: case.ours(case.bits[i], SUMS),
        "conv to bf16": lambda i: case.ours(case.bits[i], affine),
        "cudnn bf16": lambda i: F.conv2d(case.x[i], case.real.weight, padding=kernel // 2),
    }
    times = timed(contenders, case, plan)
    rate = {name: round(2 * case.macs / t["median"] / 1e9, 3) for name, t in times.items()}
    return {"layer": f"{side}x{side}x{channels} {kernel}x{kernel}", "batch": plan.batch, "us": times, "pops": rate}


def show(row: dict[str, Any]) -> None:
    rest = {key: row[key] for key in ("floor_us", "share_of_floor", "times_faster", "pops") if key in row}
    print(f"{row['layer']:16} batch {row['batch']:3}  us: {medians(row['us'], 1, 1)}  {rest}", flush=True)


def keep_nothing(record: dict[str, Any]) -> None:
    """For a caller that wants the whole record at the end alone."""


def just_run(label: str, work: Callable[[], None]) -> None:
    """For a caller that wants an error in a row to end the run."""
    work()


@torch.inference_mode()
def run(
    plan: Plan,
    seconds: float,
    keep: Callable[[dict[str, Any]], None] = keep_nothing,
    attempt: Callable[[str, Callable[[], None]], object] = just_run,
) -> dict[str, Any]:
    """All rows, then the rows of G1 and G3 again with the compiled block, as long as `seconds` allow.

    Args:
        plan: what is timed.
        seconds: after which no further block is compiled.
        keep: given the record after every row.
        attempt: given the name of a row and what makes it; decides what an error in it means.
    """
    end, copy = time.monotonic() + seconds, bandwidth(plan)
    print(f"copy: {copy / 1e6:.2f} TB/s read and written", flush=True)
    record: dict[str, Any] = {"copy_tb_s": round(copy / 1e6, 3), "G1": [], "G2": [], "G3": []}
    layers = {
        "G1": [(*layer, plan.batch) for layer in plan.blocks],
        "G3": [(*layer, small) for layer in plan.blocks for small in plan.small],
    }

    def add(table: str, make: Callable[[], dict[str, Any]], place: int | None = None) -> None:
        row = make()
        if place is None:
            record[table].append(row)
        else:
            record[table][place] = row
        show(row)
        keep(record)

    made: list[tuple[str, int, Any]] = []  # rows of blocks that can be made again
    for table, specs in (("G1", layers["G1"]), ("G2", plan.alone), ("G3", layers["G3"])):
        for spec in specs:
            make = partial(alone, *spec, plan) if table == "G2" else partial(block, *spec, copy, plan)
            place = len(record[table])
            attempt(f"{table} {spec}", partial(add, table, make))
            if table != "G2" and len(record[table]) > place:
                made.append((table, place, spec))
    # torch compiles for half a minute a layer: not before every question has an answer
    for table, place, spec in made:
        if time.monotonic() < end:
            make = partial(block, *spec, copy, plan, strongest=True)
            attempt(f"{table} {spec}, compiled", partial(add, table, make, place))
    return record


def serving(command: str) -> Status:
    """The state of the CUDA kernels that a command times; ends it with a sentence where they do not serve."""
    if not torch.cuda.is_available():
        raise SystemExit(f"{command} needs a CUDA device, torch sees none: run it on a machine with a GPU")
    gpu, status = cuda.choose()
    if gpu is None:
        raise SystemExit(f"{command} times the CUDA kernels, which do not serve here: {status.reason}")
    return status


def main() -> None:
    """Run, print, and write benchmarks/results/gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--seconds", type=float, default=300.0, help="time after which torch compiles nothing more")
    args = parser.parse_args()
    status = serving("benchmarks.speed.gpu")
    torch.backends.cudnn.benchmark = True
    settings = {
        "gpu": torch.cuda.get_device_name(),
        "path": status.serving,
        "reason": status.reason,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **vars(args),
    }
    record = run(Plan(args.batch, args.rounds), args.seconds)
    print(write("gpu", {"settings": settings, **record}))


if __name__ == "__main__":
    run_command(main)
