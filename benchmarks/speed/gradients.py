"""How fast and how exact are the gradients of a 3x3 convolution by Winograd's F(2x2, 3x3) against torch's?

python -m benchmarks.speed.gradients [--threads 1] [--batch 8] [--rounds 15]

Both gradients of one convolution, in float32, of signs and a weight of +-1 with a random gradient of the
sums, on channels_last maps. Errors are the largest difference from float64, as a part of the largest value there.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import positive, run_command
from benchmarks.timing import interleave, machine, write
from esbnn_core.errors import InputError
from esbnn_core.kernels.cpu import winograd

STAGES = {
    "R18 56x56x64": (64, 64, 56, 1),
    "R18 28x28x128": (128, 128, 28, 1),
    "R18 14x14x256": (256, 256, 14, 1),
    "R18 7x7x512": (512, 512, 7, 1),
    "R18 56x56x64, stride 2": (64, 128, 56, 2),
    "R18 14x14x256, stride 2": (256, 512, 14, 2),
    "ES-R18 56x56, 128 to 32": (128, 32, 56, 1),
    "ES-R18 7x7, 1024 to 256": (1024, 256, 7, 1),
    "ES-R18 56x56, 128 to 64, stride 2": (128, 64, 56, 2),
    "ResNet-8 16x16x32": (32, 32, 16, 1),
}
"""Channels, filters, side of the input and stride."""
BOTH = (True, True)


def operands(channels: int, filters: int, side: int, stride: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the sums, signs and weight."""
    generator = torch.Generator().manual_seed(channels)
    out = side // stride
    shapes = [(batch, filters, out, out), (batch, channels, side, side), (filters, channels, 3, 3)]
    grad, x, weight = (torch.randn(*shape, generator=generator) for shape in shapes)
    narrow = {"memory_format": torch.channels_last}
    return grad.to(**narrow), x.sign().to(**narrow), weight.sign()


def by_torch(grad: Tensor, signs: Tensor, weight: Tensor, stride: int) -> list[Tensor]:
    """Both gradients by torch's convolution."""
    shape = ((stride, stride), (1, 1), (1, 1), False, (0, 0), 1)
    return list(torch.ops.aten.convolution_backward(grad, signs, weight, None, *shape, [*BOTH, False])[:2])


def by_winograd(grad: Tensor, signs: Tensor, weight: Tensor, stride: int) -> list[Tensor]:
    """Both gradients by Winograd.

    Raises:
        InputError: this machine has no native library.
    """
    found = winograd.gradients(grad, signs, weight, stride, (1, 1), 0.0, 1, BOTH)
    if found is None:
        raise InputError("Winograd's gradients need the native CPU library: `esbnn doctor` says why there is none")
    return [t for t in found[:2] if t is not None]


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest value."""
    return float(f"{((got.double() - want).abs().max() / want.abs().max()).item():.1e}")


def measure(stage: str, batch: int, rounds: int) -> dict[str, Any]:
    """One row."""
    given = operands(*STAGES[stage], batch)
    stride = STAGES[stage][3]
    exact = by_torch(*(t.double() for t in given), stride)
    row: dict[str, Any] = {"convolution": stage}
    for name, way in (("torch", by_torch), ("Winograd", by_winograd)):
        for of, got, want in zip(("input", "weight"), way(*given, stride), exact, strict=True):
            row[f"error of the {of}'s, {name}"] = error(got, want)
    row["us"] = interleave(
        {"torch": lambda: by_torch(*given, stride), "Winograd": lambda: by_winograd(*given, stride)}, rounds
    )
    return row


def main() -> None:
    """Run, print, and write benchmarks/results/gradients_PATH.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--rounds", type=positive, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for stage in STAGES:
        rows.append(row := measure(stage, args.batch, args.rounds))
        print(row, flush=True)
    print(write(f"gradients_{machine()['path']}", {"settings": vars(args), "rows": rows}))


if __name__ == "__main__":
    run_command(main)
