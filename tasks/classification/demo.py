"""The demo: train a small binary ResNet and its ES twin at equal OPs on real images, pack both, compare, report.

    python -m tasks.classification.demo --out results/demo

The runs go to runs/demo_* and the data to data/ of the current folder. Exit code 0 only if every packed prediction
equals the latent one and both networks cost the same OPs.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from esbnn_core import count, load_checkpoint, model_spec
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, child_environment, write_atomically
from tasks.classification.data import ClassificationDataModule
from tasks.classification.demo_report import draw, markdown

CONFIGS = {"base": "configs/classification/demo_base.yaml", "ES tau=2": "configs/classification/demo_es.yaml"}


@dataclass(frozen=True)
class Row:
    """One network of the table; tops in percent of the test images, times in milliseconds an image."""

    system: str
    network: str
    options: dict[str, Any]
    command: str
    top1_latent: float
    top1_packed: float
    differing: int
    bops: int
    flops: int
    ops: float
    params: int
    bytes_latent: int
    bytes_packed: int
    ms_latent: float
    ms_packed: float
    train_seconds: float
    val_top1: list[float]


def train(config: str, extra: Sequence[str]) -> tuple[str, float]:
    """Run the command that users run; returns it and its seconds. Raises InputError if it fails."""
    words = ["-m", "tasks.classification", "fit", "--config", os.path.relpath(ROOT / config), *extra]
    command = "python " + " ".join(words)
    print(f"\n$ {command}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=child_environment())
    if done.returncode:
        raise InputError(f"{command} ended with exit code {done.returncode}: its own message is above")
    return command, time.perf_counter() - start


@torch.inference_mode()
def compare(latent: nn.Module, packed: nn.Module, data: ClassificationDataModule) -> dict[str, float]:
    """Both networks over the test split, batch by batch in turn: tops, differing predictions, median ms an image."""
    data.setup("test")
    right = {"latent": 0, "packed": 0}
    times: dict[str, list[float]] = {"latent": [], "packed": []}
    differing = total = 0
    for images, labels in data.test_dataloader():
        images = images.contiguous(memory_format=torch.channels_last)
        guess = {}
        for name, network in (("latent", latent), ("packed", packed)):
            start = time.perf_counter()
            guess[name] = network(images).argmax(1)
            times[name].append(1e3 * (time.perf_counter() - start) / len(images))
            right[name] += int((guess[name] == labels).sum())
        differing += int((guess["latent"] != guess["packed"]).sum())
        total += len(images)
    return {
        "top1_latent": 100 * right["latent"] / total,
        "top1_packed": 100 * right["packed"] / total,
        "differing": differing,
        "ms_latent": median(times["latent"]),
        "ms_packed": median(times["packed"]),
    }


def validation_curve(metrics: Path) -> list[float]:
    """val_top1 of every epoch from a CSVLogger's file."""
    with metrics.open() as file:
        return [float(row["val_top1"]) for row in csv.DictReader(file) if row.get("val_top1")]


def run_system(system: str, config: str, extra: Sequence[str]) -> Row:
    """Train, read back both files, compare and count one network."""
    folder = Path("runs") / Path(config).stem
    command, seconds = train(config, extra)
    latent = load_checkpoint(folder / "weights.safetensors").to(memory_format=torch.channels_last)
    packed = load_checkpoint(folder / "packed.safetensors").to(memory_format=torch.channels_last)
    spec = model_spec(latent)
    assert spec is not None
    data = ClassificationDataModule(batch_size=100)
    cost = count(latent, (spec.options["in_channels"], data.info.size, data.info.size))
    return Row(
        system=system,
        network=spec.name,
        options=dict(spec.options),
        command=command,
        bops=cost.bops,
        flops=cost.flops,
        ops=cost.ops,
        params=cost.params,
        bytes_latent=(folder / "weights.safetensors").stat().st_size,
        bytes_packed=(folder / "packed.safetensors").stat().st_size,
        train_seconds=seconds,
        val_top1=validation_curve(folder / "metrics.csv"),
        **compare(latent, packed, data),  # type: ignore[arg-type]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="train, pack and compare a binary ResNet-8 and its ES twin")
    parser.add_argument("--out", default="results/demo", help="folder for report.md, report.json and report.png")
    parser.add_argument("extra", nargs="*", help="further options of fit, behind --, e.g. -- --trainer.max_epochs=1")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        rows = [run_system(system, config, args.extra) for system, config in CONFIGS.items()]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    faults = [f"{row.system}: {row.differing} packed predictions differ" for row in rows if row.differing]
    if len({(row.bops, row.flops) for row in rows}) != 1:
        faults.append("the OPs of the two networks differ")
    text = markdown(rows)
    write_atomically(out / "report.md", text.encode())
    report = {"rows": [asdict(row) for row in rows], "faults": faults, "torch": torch.__version__}
    write_atomically(out / "report.json", json.dumps(report, indent=1).encode())
    draw(rows, out / "report.png")
    print(f"\n{text}\nwritten to {out}/report.md, report.json, report.png")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
