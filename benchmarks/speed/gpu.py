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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.command import positive, run_command
from benchmarks.speed.parts import Block
from benchmarks.timing import medians, quartiles, write
from esbnn_core import kernels
from esbnn_core.kernels import SUMS, Epilogue, Geometry, cuda

STAGES = ((56, 64), (28, 128), (14, 256), (7, 512))
"""Side and channels of ReActNet-18's four stages at 224x224; all 3x3."""

ALONE = ((28, 128, 3), (14, 256, 3), (7, 512, 3), (14, 512, 3), (14, 512, 1))
"""Side, channels and kernel of the convolutions timed alone."""

CACHE, SETS = 256 << 20, 64
"""Bytes that the inputs of one contender should exceed together (several second-level caches); most inputs."""

Work = Callable[[int], object]
"""One call on input set i."""


class Case:
    """A block's parameters, and enough inputs to exceed the cache."""

    def __init__(self, batch: int, side: int, channels: int, kernel: int) -> None:
        g = torch.Generator(device="cuda").manual_seed(0)
        self.geometry = Geometry(channels, padding=(kernel // 2, kernel // 2))
        shape = (batch, channels, side, side)
        self.values = batch * channels * side * side
        self.macs = self.values * channels * kernel * kernel
        count = max(2, min(SETS, -(-CACHE // (2 * self.values))))
        self.x = [
            torch.randn(shape, generator=g, device="cuda").bfloat16().to(memory_format=torch.channels_last)
            for _ in range(count)
        ]
        latent = torch.randn(channels, channels, kernel, kernel, generator=g, device="cuda")
        self.scale, self.bias, self.slope = torch.rand(3, channels, generator=g, device="cuda").unbind()
        self.real = Block(torch.where(latent >= 0, 1.0, -1.0), self.scale, self.bias, self.slope).bfloat16().eval()
        self.real = self.real.to(memory_format=torch.channels_last)
        self.weight = kernels.pack_sign(latent, None, 1, 1)
        lanes = kernels.lanes_of(self.weight, 1)
        if lanes is None or lanes.dim() != 2:
            raise SystemExit("benchmarks.speed.gpu times the CUDA kernels, but esbnn_core.kernels did not reach them")
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
            raise SystemExit(f"the CUDA block of {self.geometry.channels} channels differs from the CPU's: not timed")


def captured(work: Work, sets: int) -> Callable[[], None]:
    """A CUDA graph of one call for each input set; call it to replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(min(sets, 3)):
            work(i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # a separate output for each input: one that is overwritten might never leave the cache
        kept = [work(i) for i in range(sets)]

    def replay() -> None:
        assert kept
        graph.replay()

    return replay


def interleave(contenders: dict[str, Work], sets: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of one call of each contender: median and quartiles over rounds in which all take turns."""
    graphs = {name: captured(work, sets) for name, work in contenders.items()}
    repeats = {}
    for name, replay in graphs.items():
        replay()
        repeats[name] = max(1, round(3000 / (spent(replay, 1) + 1)))  # a turn of about 3 ms
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, replay in graphs.items():
            times[name].append(spent(replay, repeats[name]) / repeats[name] / sets)
    return {name: quartiles(values, 2) for name, values in times.items()}


def spent(replay: Callable[[], None], repeats: int) -> float:
    """Microseconds of some replays, by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000


def bandwidth() -> float:
    """Bytes a microsecond, read plus written, of a device-to-device copy of 2 GiB."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    times = [spent(copy, 1) for _ in range(12)]
    return 2 * source.numel() / statistics.median(times[2:])


class Clock:
    """Whether there is time left for another contender that takes long to compile."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> bool:
        return time.monotonic() < self.end


def with_compiled(case: Case, contenders: dict[str, Work], clock: Clock) -> None:
    """Add torch.compile's strongest setting without a CUDA graph of its own, while there is time."""
    if not clock.left():
        return
    torch._dynamo.reset()
    compiled = torch.compile(case.real, mode="max-autotune-no-cudagraphs")
    for _ in range(2):
        compiled(case.x[0], case.x[1])
    contenders["torch.compile bf16"] = lambda i: compiled(case.x[i], case.x[i])


def block(side: int, channels: int, batch: int, rounds: int, copy: float, clock: Clock) -> dict[str, Any]:
    """One row of G1 or G3."""
    case = Case(batch, side, channels, 3)
    case.check()
    contenders: dict[str, Work] = {
        "fused block": lambda i: case.ours(case.bits[i], case.fused(case.x[i])),
        "fused block, packing": lambda i: case.ours(case.x[i], case.fused(case.x[i])),
        "eager bf16": lambda i: case.real(case.x[i], case.x[i]),
    }
    with_compiled(case, contenders, clock)
    times = interleave(contenders, len(case.x), rounds)
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


def alone(side: int, channels: int, kernel: int, batch: int, rounds: int) -> dict[str, Any]:
    """One row of G2: the convolution alone, to int32 sums and to bfloat16 with its affine; a MAC is 2 operations."""
    case = Case(batch, side, channels, kernel)
    affine = Epilogue(case.scale, case.bias, out_dtype=torch.bfloat16)
    contenders: dict[str, Work] = {
        "conv to int32": lambda i: case.ours(case.bits[i], SUMS),
        "conv to bf16": lambda i: case.ours(case.bits[i], affine),
        "cudnn bf16": lambda i: F.conv2d(case.x[i], case.real.weight, padding=kernel // 2),
    }
    times = interleave(contenders, len(case.x), rounds)
    rate = {name: round(2 * case.macs / t["median"] / 1e9, 3) for name, t in times.items()}
    return {"layer": f"{side}x{side}x{channels} {kernel}x{kernel}", "batch": batch, "us": times, "pops": rate}


def show(row: dict[str, Any]) -> None:
    rest = {key: row[key] for key in ("floor_us", "share_of_floor", "times_faster", "pops") if key in row}
    print(f"{row['layer']:16} batch {row['batch']:3}  us: {medians(row['us'], 1, 1)}  {rest}", flush=True)


@torch.inference_mode()
def run(batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """All rows; after `seconds` the contenders that take long to compile are left out of the remaining rows."""
    clock, copy = Clock(seconds), bandwidth()
    print(f"copy: {copy / 1e6:.2f} TB/s read and written", flush=True)
    record: dict[str, Any] = {"copy_tb_s": round(copy / 1e6, 3), "G1": [], "G2": [], "G3": []}
    for side, channels in STAGES:
        record["G1"].append(block(side, channels, batch, rounds, copy, clock))
        show(record["G1"][-1])
    for spec in ALONE:
        record["G2"].append(alone(*spec, batch, rounds))
        show(record["G2"][-1])
    for side, channels in STAGES:
        for small in (1, 8):
            record["G3"].append(block(side, channels, small, rounds, copy, clock))
            show(record["G3"][-1])
    return record


def main() -> None:
    """Run, print, and write benchmarks/results/gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--seconds", type=float, default=300.0, help="time after which torch compiles nothing more")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.speed.gpu needs a CUDA device, torch sees none: run it on a machine with a GPU")
    gpu, status = cuda.choose()
    if gpu is None:
        raise SystemExit(f"benchmarks.speed.gpu times the CUDA kernels, which do not serve here: {status.reason}")
    torch.backends.cudnn.benchmark = True
    settings = {
        "gpu": torch.cuda.get_device_name(),
        "path": status.serving,
        "reason": status.reason,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **vars(args),
    }
    record = run(args.batch, args.rounds, args.seconds)
    print(write("gpu", {"settings": settings, **record}))


if __name__ == "__main__":
    run_command(main)
