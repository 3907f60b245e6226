"""Stage 2: are the sums of latent layers exact on cuDNN and cuBLAS, under TF32 too, and the packed ones with them?

Products of +-1 are exact in TF32 and a float32 accumulator holds their sums, unless an algorithm transforms its inputs
(Winograd, FFT), as cuDNN's may where TF32 is forbidden: a difference is noted there, and is a fault everywhere else.
Each layer's sums are compared with the CPU's whole numbers under every setting a user may have.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.task import OutOfTime, Task
from esbnn_core import kernels
from esbnn_core.kernels import SUMS, Geometry
from esbnn_core.layers import BinaryConv2d, BinaryLinear


@dataclass(frozen=True)
class Layer:
    """A convolution by its numbers; all with a ring of zeros."""

    batch: int
    side: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


LAYERS = (
    *(Layer(64, side, channels, channels) for side, channels in ((56, 64), (28, 128), (14, 256), (7, 512))),
    *(Layer(256, side, channels, channels) for side, channels in ((32, 16), (16, 32), (8, 64))),
    *(Layer(1, side, channels, channels) for side, channels in ((56, 64), (14, 256))),
    Layer(64, 56, 64, 128, stride=2),
    Layer(64, 28, 256, 64),
    Layer(16, 28, 256, 256, groups=2),
    Layer(16, 14, 512, 1024, kernel=1),
    Layer(16, 14, 128, 128, kernel=5),
    Layer(4, 19, 1024, 256, kernel=3),
)
TINY = (Layer(2, 5, 32, 16), Layer(1, 4, 40, 8, stride=2, groups=2))
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@contextlib.contextmanager
def setting(tf32: bool, search: bool) -> Iterator[None]:
    """TF32 in cuDNN and cuBLAS, and cuDNN's search for the fastest algorithm, as asked for; put back at the end."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, cublas.allow_tf32, cudnn.benchmark = tf32, tf32, search
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32, cudnn.benchmark = before


def compare(got: Tensor, want: Tensor) -> dict[str, Any]:
    """Whether sums are the whole numbers `want`, on the CPU, and the largest difference."""
    away = (got.detach().cpu().double() - want.double()).abs()
    return {"equal": not away.any().item(), "largest difference": away.max().item()}


def settings() -> Iterator[tuple[str, bool, bool, str, bool]]:
    """Name, TF32, search, memory format and autocast of each setting."""
    for tf32, search, layout in itertools.product((True, False), (False, True), FORMATS):
        words = ("TF32" if tf32 else "fp32", "search" if search else "default", layout)
        yield " ".join(words), tf32, search, layout, False
    yield "bf16 autocast, evaluation", True, False, "channels_last", True


def measure(task: Task, layer: Layer) -> None:
    """One convolution: packed sums, and latent sums under every setting."""
    torch.manual_seed(0)
    conv = BinaryConv2d(
        layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.kernel // 2, groups=layer.groups
    ).eval()
    x = torch.randn(layer.batch, layer.inputs, layer.side, layer.side)
    stride, padding = (layer.stride, layer.stride), (layer.kernel // 2, layer.kernel // 2)
    geometry = Geometry(layer.inputs, stride, padding, groups=layer.groups)
    bits, weight = kernels.pack_sign(x, None, layer.groups, 1), kernels.pack_sign(conv.weight.detach(), None, 1, 1)
    want, _ = kernels.binary_conv2d(bits, weight, geometry, SUMS)
    packed, _ = kernels.binary_conv2d(bits.to(task.device), weight.to(task.device), geometry, SUMS)
    row: dict[str, Any] = {"layer": str(layer), "packed": compare(packed, want), "latent": {}}
    conv.to(task.device)
    for name, tf32, search, layout, narrow in settings():
        there = x.to(task.device, memory_format=FORMATS[layout])
        conv.to(memory_format=FORMATS[layout])
        with setting(tf32, search), torch.autocast(task.device, torch.bfloat16, enabled=narrow):
            row["latent"][name] = compare(conv(there, scaled=False), want)
    report(task, row)


def measure_linear(task: Task, rows: int, features: int, outputs: int) -> None:
    """One matrix product under TF32 and without."""
    torch.manual_seed(0)
    linear: nn.Module = BinaryLinear(features, outputs).eval()
    x = torch.randn(rows, features)
    weight = linear.weight.detach()
    want = torch.where(x >= 0, 1.0, -1.0).double() @ torch.where(weight >= 0, 1.0, -1.0).double().T
    linear.to(task.device)
    row: dict[str, Any] = {"layer": f"linear {rows}x{features}x{outputs}", "latent": {}}
    for tf32 in (True, False):
        with setting(tf32, False):
            row["latent"]["TF32" if tf32 else "fp32"] = compare(linear(x.to(task.device), scaled=False), want)
    report(task, row)


def report(task: Task, row: dict[str, Any]) -> None:
    """Keep a row; each setting with a wrong sum is a fault, but those that forbid TF32."""
    task.row("rows", row)
    for name, found in {**row["latent"], "packed": row.get("packed", {"equal": True})}.items():
        if not found["equal"] and not name.startswith("fp32 "):
            task.fault(f"sums of {row['layer']} with {name} are off by up to {found['largest difference']}")


@torch.no_grad()
def run(task: Task) -> None:
    """The stage."""
    layers = TINY if task.rehearse else LAYERS
    for number, layer in enumerate(layers):
        if task.left() < 4:
            raise OutOfTime(f"time for {number} of {len(layers)} convolutions")
        task.attempt(str(layer), partial(measure, task, layer))
    for shape in ((5, 33, 7),) if task.rehearse else ((3136, 384, 384), (1000, 2048, 1000), (64, 4096, 512)):
        task.attempt(f"linear {shape}", partial(measure_linear, task, *shape))
    rows = task.record.get("rows", [])
    rounded = {name for row in rows for name, found in row["latent"].items() if not found["equal"]}
    exact = sum(all(found["equal"] for found in row["latent"].values()) for row in rows)
    print(f"{exact} of {len(rows)} layers have exact latent sums under every setting; not exact: {sorted(rounded)}")
