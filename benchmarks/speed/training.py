"""What does training on bits save? Bytes kept for backward and time of a step against the plain layers (G4, G5).

python -m benchmarks.speed.training [--threads 1] [--size 224] [--batch 8] [--rounds 5] [--names reactnet_resnet18 ...]
    [--device cpu] [--fp32]

Bytes are those that autograd keeps of one forward of the binary blocks, with their real shortcuts but without stem and
head: distinct storages, each counted once, without parameters and buffers. They are counted at batches 2 and 4 of
224x224 images and continued as a straight line to batch 256. A step is forward, loss, backward and an SGD step, on 8
images of 224x224, for BNext of 112x112. The demo's ResNet-8 has images of 32x32 in both, a step 128 of them. On the CPU
the C library's allocator returns large blocks to the system and gets them again, zeroed, at every operator;
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 makes it keep them.
"""

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.command import positive, run_command
from benchmarks.speed.parts import anneal_
from benchmarks.timing import interleave, machine, medians, write
from esbnn_core import TrainOnBits, create_model, train_on_bits_
from esbnn_core.layers import Sign

NAMES = ("reactnet_resnet18", "es_reactnet_resnet18", "es_bnext_tiny")
DEMO = ("reactnet_resnet8", "es_reactnet_resnet8")
SIZE, SMALL = 224, {"es_bnext_tiny": 112, **dict.fromkeys(DEMO, 32)}
BATCH, LARGE = 8, dict.fromkeys(DEMO, 128)
GIB = 1 << 30
TARGET = {"reactnet_resnet18": "target <= 2.0 GiB; given as 6.9 with clip STE under bf16, 14.9 for the published code"}
ROUNDED = "fp32, bf16 gradients"
"""Of training on bits: fp32 but for the gradients in backward's convolutions (TrainOnBits.gradient_dtype)."""
RATIO = 1.5
"""Target of the throughput over the plain layers at equal precision; it was set for a GPU."""


def annealed(name: str, clip: bool = False) -> nn.Module:
    """The network in training mode, its weights in sign mode; `clip` replaces its estimator by the clip STE."""
    torch.manual_seed(0)
    network = anneal_(create_model(name))
    for module in network.modules():
        if clip and isinstance(module, Sign):
            module.ste = "clip"
    return network.train()


def autocast(kind: str, narrow: bool) -> AbstractContextManager[Any]:
    """bf16 autocast, or none."""
    return torch.autocast(kind, torch.bfloat16, enabled=narrow)


def kept_bytes(network: nn.Module, x: Tensor, narrow: bool) -> int:
    """Bytes that autograd keeps of a forward of the binary blocks."""
    stem, blocks = (getattr(network, key) for key in ("stem", "stages" if hasattr(network, "stages") else "blocks"))
    parameters = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with autocast(x.device.type, narrow):
        maps = stem(x)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = blocks(maps)  # kept until all is counted, so that no two storages have the same address
    del out
    return sum(kept.values())


def at_256(network: nn.Module, narrow: bool, device: str, size: int = 224) -> float:
    """GiB at batch 256 of size x size images, from batches 2 and 4."""
    two, four = (kept_bytes(network, torch.randn(n, 3, size, size, device=device), narrow) for n in (2, 4))
    return (two + (four - two) // 2 * 254) / GIB


def both_ways(network: nn.Module, x: Tensor, labels: Tensor, narrow: bool) -> Callable[[], None]:
    """Forward, loss and backward as a call."""

    def run() -> None:
        network.zero_grad()
        with autocast(x.device.type, narrow):
            loss = F.cross_entropy(network(x).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return run


def step(network: nn.Module, x: Tensor, labels: Tensor, narrow: bool) -> Callable[[], None]:
    """One training step as a call."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    work = both_ways(network, x, labels, narrow)

    def run() -> None:
        work()
        optimizer.step()
        if x.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def gib_kept(name: str, device: str, size: int = 224) -> dict[str, float]:
    """GiB kept for backward at batch 256, by way, precision and estimator; without sums, as on a GPU."""
    kept, again = {}, TrainOnBits(keep_sums=False)
    for clip in (False, True) if name == "reactnet_resnet18" else (False,):
        plain = annealed(name, clip).to(device)
        for way, network in (("plain", plain), ("bits", train_on_bits_(copy.deepcopy(plain), again))):
            for narrow in (False, True):
                key = f"{way} {'bf16 autocast' if narrow else 'fp32'}{' clip STE' if clip else ''}"
                kept[key] = round(at_256(network, narrow, device, size), 3)
    return kept


Work = Callable[[nn.Module, Tensor, Tensor, bool], Callable[[], None]]


def steps(
    name: str, device: str, size: int, batch: int, work: Work = step, narrow: bool = True
) -> dict[str, Callable[[], None]]:
    """Training steps, or `work`, of one network by way and precision, each with a copy of its own.

    `narrow`: with those that round to bfloat16.
    """
    plain = annealed(name).to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)  # classes that every network has
    contenders = {}
    for way in ("plain", "bits"):
        for cast in (False, True)[: 1 + narrow]:
            network = copy.deepcopy(plain)
            network = train_on_bits_(network) if way == "bits" else network
            contenders[f"{way} {'bf16 autocast' if cast else 'fp32'}"] = work(network, x, labels, cast)
    if not narrow:
        return contenders
    rounded = train_on_bits_(copy.deepcopy(plain), TrainOnBits(gradient_dtype=torch.bfloat16))
    contenders[f"bits {ROUNDED}"] = work(rounded, x, labels, False)
    return contenders


def throughput(us: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of training on bits over the plain layers, by precision; with rounded gradients over the plain fp32 step."""
    sides = {"fp32": "fp32", "bf16 autocast": "bf16 autocast", ROUNDED: "fp32"}
    return {
        kind: round(us[f"plain {plain}"]["median"] / us[f"bits {kind}"]["median"], 2)
        for kind, plain in sides.items()
        if f"bits {kind}" in us
    }


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    kept = gib_kept(name, args.device, SMALL[name] if name in DEMO else SIZE)
    row: dict[str, Any] = {"network": name, "GiB at batch 256": kept}
    size = row["size"] = args.size or SMALL.get(name, SIZE)
    batch = row["batch"] = args.batch or LARGE.get(name, BATCH)
    contenders = steps(name, args.device, size, batch, narrow=not args.fp32)
    # one thread of the processor can be timed by itself, whatever else the machine is doing
    alone = args.device == "cpu" and args.threads == 1
    row["clock"] = "process" if alone else "wall"
    row["us"] = interleave(contenders, args.rounds, clock=time.process_time if alone else time.perf_counter)
    row["throughput"] = throughput(row["us"])
    return row


def main() -> None:
    """Run, print, and write benchmarks/results/training_PATH.json: a file for each path of the processor, or device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--size", type=positive)
    parser.add_argument("--batch", type=positive)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--names", nargs="+", default=(*NAMES, *DEMO))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fp32", action="store_true", help="leave bfloat16 out, which some processors imitate slowly")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.names:
        rows.append(row := measure(name, args))
        kept = "  ".join(f"{key} {value:.2f}" for key, value in row["GiB at batch 256"].items())
        print(f"{name}\n  kept for backward, GiB at batch 256 (counted at 2 and 4): {kept}")
        if name in TARGET:
            print(f"  {TARGET[name]}")
        what = f"{row['batch']} images of {row['size']}x{row['size']} on {args.device}, {row['clock']} time"
        print(f"  ms a step of {what}: {medians(row['us'], 1000, 0)}")
        print(f"  throughput over the plain layers: {row['throughput']} (target {RATIO}, set for a GPU)", flush=True)
    name = f"training_{machine()['path']}" if args.device == "cpu" else f"training_{args.device}"
    name += f"_threads{args.threads}" if args.threads > 1 else ""
    print(write(name, {"settings": vars(args), "rows": rows}))


if __name__ == "__main__":
    run_command(main)
