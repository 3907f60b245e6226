"""The demo: train a small binary ResNet and its ES twin at equal OPs on real images, pack both, compare, report.

    python -m tasks.classification.demo --out results/demo

The runs are written to runs/demo_base and runs/demo_es, and the data to data/, all below the current folder. The exit
code is 0 only if every packed prediction equals the latent one and both networks cost the same OPs.
"""

import argparse
import csv
import json
import os
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
from esbnn_core.errors import InputError, check_output_folder, refuse
from esbnn_core.files import ROOT, child_environment, write_atomically
from esbnn_core.lit.children import passes_sigterm_on, run_child
from esbnn_core.lit.recipes import read_config
from esbnn_core.lit.start import StartApart
from tasks.classification.data import ClassificationDataModule
from tasks.classification.demo_report import draw_report, render_report, render_summary

CONFIGS = {"base": "configs/classification/demo_base.yaml", "ES tau=2": "configs/classification/demo_es.yaml"}

START = f"{StartApart.__module__}.{StartApart.__qualname__}"


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes:
        system: name in the table.
        network: registered name.
        options: of the network.
        start: arguments of its StartApart, empty for the papers' start.
        command: that trained it.
        top1_latent: accuracy of the latent network, in percent of the test images.
        top1_packed: accuracy of the packed network, likewise.
        differing: test images on which the two disagree.
        bops: binary multiply-accumulates of one image.
        flops: real multiply-accumulates of one image.
        ops: BOPs / 64 + FLOPs.
        params: number of parameters.
        bytes_latent: size of weights.safetensors.
        bytes_packed: size of packed.safetensors.
        ms_latent: median time an image, in milliseconds.
        ms_packed: likewise, packed.
        train_seconds: of the whole command.
        val_top1: of every epoch, in percent.
    """

    system: str
    network: str
    options: dict[str, Any]
    start: dict[str, Any]
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
    """Run the command that users run.

    Returns:
        The command and its seconds.

    Raises:
        InputError: the command failed.
    """
    words = ["-m", "tasks.classification", "fit", "--config", os.path.relpath(ROOT / config), *extra]
    command = "python " + " ".join(words)
    print(f"\n$ {command}", flush=True)
    start = time.perf_counter()
    # threads that wait by spinning slow a step several times where other work shares the processors
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **child_environment()}
    code = run_child(words, env=environment)
    if code:
        raise InputError(f"{command} ended with exit code {code}: its own message is above")
    return command, time.perf_counter() - start


@torch.inference_mode()
def compare(latent: nn.Module, packed: nn.Module, data: ClassificationDataModule) -> dict[str, float]:
    """Run both networks over the test split, batch by batch in turn.

    Returns:
        The fields of Row that are measured: accuracies, differing predictions, median milliseconds an image.
    """
    data.setup("test")
    right = {"latent": 0, "packed": 0}
    times: dict[str, list[float]] = {"latent": [], "packed": []}
    differing = total = 0
    for images, labels in data.test_dataloader():
        images = images.contiguous(memory_format=torch.channels_last)
        predicted = {}
        for name, network in (("latent", latent), ("packed", packed)):
            start = time.perf_counter()
            predicted[name] = network(images).argmax(1)
            times[name].append(1e3 * (time.perf_counter() - start) / len(images))
            right[name] += int((predicted[name] == labels).sum())
        differing += int((predicted["latent"] != predicted["packed"]).sum())
        total += len(images)
    return {
        "top1_latent": 100 * right["latent"] / total,
        "top1_packed": 100 * right["packed"] / total,
        "differing": differing,
        "ms_latent": median(times["latent"]),
        "ms_packed": median(times["packed"]),
    }


def read_curve(metrics: Path) -> list[float]:
    """val_top1 of every epoch, from a CSVLogger's file."""
    with metrics.open() as file:
        return [float(row["val_top1"]) for row in csv.DictReader(file) if row.get("val_top1")]


def read_start(config: Path) -> dict[str, Any]:
    """The arguments of StartApart in a run's config.yaml, empty where it has none."""
    found = [callback for callback in read_config(config)["trainer"]["callbacks"] if callback["class_path"] == START]
    return dict(found[0]["init_args"]) if found else {}


def run_system(system: str, config: str, extra: Sequence[str]) -> Row:
    """Train one network, read both of its files, compare and count them."""
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
        start=read_start(folder / "config.yaml"),
        command=command,
        bops=cost.bops,
        flops=cost.flops,
        ops=cost.ops,
        params=cost.params,
        bytes_latent=(folder / "weights.safetensors").stat().st_size,
        bytes_packed=(folder / "packed.safetensors").stat().st_size,
        train_seconds=seconds,
        val_top1=read_curve(folder / "metrics.csv"),
        **compare(latent, packed, data),  # type: ignore[arg-type]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="train, pack and compare a binary ResNet-8 and its ES twin")
    files = "summary.md, report.md, report.json and report.png"
    parser.add_argument("--out", default="results/demo", help=f"folder for {files}")
    parser.add_argument("extra", nargs="*", help="further options of fit, after --, e.g. -- --trainer.max_epochs=1")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        check_output_folder(out, "--out")
        with passes_sigterm_on():
            rows = [run_system(system, config, args.extra) for system, config in CONFIGS.items()]
    except Exception as error:
        return refuse(error)
    faults = [f"{row.system}: {row.differing} packed predictions differ" for row in rows if row.differing]
    if len({(row.bops, row.flops) for row in rows}) != 1:
        faults.append("the OPs of the two networks differ")
    summary = render_summary(rows)
    write_atomically(out / "summary.md", summary.encode())
    write_atomically(out / "report.md", render_report(rows).encode())
    report = {"rows": [asdict(row) for row in rows], "faults": faults, "torch": torch.__version__}
    write_atomically(out / "report.json", json.dumps(report, indent=1).encode())
    draw_report(rows, out / "report.png")
    print(f"\n{summary}\nwritten to {out}: {files}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
