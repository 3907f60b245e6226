"""How fast is one binary block? The fused packed block against torch's convolution on nine layers (targets C1, C2).

python -m benchmarks.speed.layers [--threads 1] [--batch 1] [--rounds 15] [--compile]

A block is sign -> 3x3 or 1x1 convolution -> affine -> PReLU -> + residual, on channels_last images.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import positive, run_command
from benchmarks.speed.parts import Block
from benchmarks.timing import frozen, interleave, machine, medians, write
from esbnn_core import kernels
from esbnn_core.kernels import Epilogue, Geometry, cpu

LAYERS = (  # name, side, channels, kernel
    ("R18 56x56x64 3x3", 56, 64, 3),
    ("R18 28x28x128 3x3", 28, 128, 3),
    ("R18 14x14x256 3x3", 14, 256, 3),
    ("R18 7x7x512 3x3", 7, 512, 3),
    ("BNext 14x14x512 3x3", 14, 512, 3),
    ("BNext 14x14x512 1x1", 14, 512, 1),
    ("BNext 28x28x256 3x3", 28, 256, 3),
    ("BNext 28x28x256 1x1", 28, 256, 1),
    ("BNext 7x7x1024 1x1", 7, 1024, 1),
)


def quantized(weight: Tensor, x: Tensor) -> Callable[[], object]:
    """oneDNN's int8 convolution alone, on quantized input."""
    torch.backends.quantized.engine = "onednn"
    packed = torch.ops.quantized.conv2d_prepack(
        torch.quantize_per_channel(
            weight, torch.ones(len(weight)).double(), torch.zeros(len(weight)).long(), 0, torch.qint8
        ),
        None,
        [1, 1],
        [weight.shape[-1] // 2] * 2,
        [1, 1],
        1,
    )
    signs = torch.quantize_per_tensor(torch.where(x >= 0, 1.0, -1.0), 1.0, 1, torch.quint8)
    return lambda: torch.ops.quantized.conv2d(signs, packed, 1.0, 128)


@torch.inference_mode()
def layer(name: str, side: int, channels: int, kernel: int, batch: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """One row: the times of every contender, after a comparison of their results."""
    g = torch.Generator().manual_seed(0)
    shape = (batch, channels, side, side)
    x, residual = (torch.randn(shape, generator=g).to(memory_format=torch.channels_last) for _ in range(2))
    latent = torch.randn(channels, channels, kernel, kernel, generator=g)
    scale, bias, slope = (torch.rand(channels, generator=g) for _ in range(3))
    weight = kernels.pack_sign(latent, None, 1, 1)
    lanes = kernels.lanes_of(weight, 1)
    geometry = Geometry(channels, padding=(kernel // 2, kernel // 2))

    def convolve(x: Tensor, *steps: Tensor | None) -> Tensor:
        return kernels.binary_conv2d(x, weight, geometry, Epilogue(scale, bias, *steps), lanes=lanes)[0]

    real = Block(torch.where(latent >= 0, 1.0, -1.0), scale, bias, slope).eval().to(memory_format=torch.channels_last)
    narrow = Block(real.weight, scale, bias, slope).bfloat16().eval().to(memory_format=torch.channels_last)
    bits = kernels.pack_sign(x, None, 1, 1)
    small = (x.bfloat16(), residual.bfloat16())
    contenders: dict[str, Callable[[], object]] = {
        "packed block": lambda: convolve(x, slope, residual),
        "packed conv alone": lambda: convolve(bits),
        "torch fp32": lambda: real(x, residual),
        "torch bf16": lambda: narrow(*small),
        "onednn int8 conv alone": quantized(real.weight.detach(), x),
    }
    if compiled:
        contenders["torch fp32 frozen"] = frozen(real, x, residual)
        contenders["torch bf16 frozen"] = frozen(narrow, *small)
    # the sums are whole numbers, which torch's real convolution computes exactly
    torch.testing.assert_close(contenders["packed block"](), real(x, residual), rtol=1e-5, atol=1e-4)
    times = interleave(contenders, rounds)
    macs = batch * side * side * channels * channels * kernel * kernel
    return {"layer": name, "macs": macs, "us": times}


def peak(words: int = 128) -> float:
    """Products of +-1 a nanosecond in the path's innermost loop on data in the first cache, the best of 9 turns."""
    library = cpu.choose()[0]
    if library is None:
        return 0.0
    best = 0.0
    for _ in range(9):
        start = time.perf_counter()
        made = library.handle.esbnn_spin(library.path, words, 20000)
        best = max(best, made / (time.perf_counter() - start) / 1e9)
    return best


def ratio(rows: list[dict[str, Any]], names: list[str]) -> float:
    """Time of the fastest of `names` over that of the packed block, geometric mean over the layers."""
    logs = [math.log(min(row["us"][n]["median"] for n in names) / row["us"]["packed block"]["median"]) for row in rows]
    return math.exp(sum(logs) / len(logs))


def main() -> None:
    """Run, print, and write benchmarks/results/layers_PATH.json, a file for each path of the processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile with freezing (minutes)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for spec in LAYERS:
        rows.append(layer(*spec, args.batch, args.rounds, args.compile))
        print(f"{rows[-1]['layer']:20}  {medians(rows[-1]['us'], 1, 0)}", flush=True)
    summary = {
        kind: round(ratio(rows, [name for name in rows[0]["us"] if kind in name]), 2)
        for kind in ("torch fp32", "torch bf16", "onednn int8")
    }
    print(f"geometric mean of the best of each over the packed block: {summary}")
    fastest = peak()
    for row in rows:
        row["of the loop alone"] = round(row["macs"] / row["us"]["packed conv alone"]["median"] / 1e3 / fastest, 3)
    print(f"the innermost loop alone: {fastest:.0f} products a nanosecond")
    settings = {"threads": args.threads, "batch": args.batch, "rounds": args.rounds, "compile": args.compile}
    print(
        write(
            f"layers_{machine()['path']}",
            {"settings": settings, "rows": rows, "times_faster": summary, "loop_alone": round(fastest)},
        )
    )


if __name__ == "__main__":
    run_command(main)
