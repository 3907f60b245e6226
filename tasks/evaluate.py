"""Evaluate a network file on images: an official file of the originals, or a .safetensors file of ours.

    python -m tasks.evaluate es_bnext_tiny.pth.tar --model es_bnext_tiny --data /data/imagenet
    python -m tasks.evaluate packed.safetensors --data data --dataset cifar10 --json result.json

A BNext file whose weight temperature was not lowered (below 1e-7) holds real weights; it is evaluated as stored and
with forced sign. An error is one sentence on stderr and exit code 2.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from esbnn_core.channels import check_counts
from esbnn_core.checkpoint import file_sha256, read_checkpoint, write_atomically
from esbnn_core.counting import count
from esbnn_core.errors import InputError
from esbnn_core.foreign import load_official
from esbnn_core.lit.cli import sentence
from esbnn_core.models import create_model, model_spec
from esbnn_core.packed import PackedLayer
from esbnn_core.quantizers import RealWeights, Temperature
from esbnn_core.release import load_checkpoint
from esbnn_core.surgery import pack_
from esbnn_core.unit import binary_layers, exact_zeros
from tasks.classification.augment import SMALL, Augmentation, evaluation_recipe
from tasks.classification.data import ClassificationDataModule
from tasks.classification.datasets import DATASETS, DatasetInfo, dataset_info
from tasks.classification.scoring import score

STORED, FORCED, PACKED = "as stored", "forced sign", "packed"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        result = evaluate(args)
        print(_text(result))
        if args.json:
            write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())
    except (InputError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.evaluate", description="Top-1 and top-5 of a network file")
    parser.add_argument("path", metavar="PATH", help="official .pth or .pth.tar, or our .safetensors")
    parser.add_argument("--model", metavar="NAME", help="network; a .safetensors file knows its own")
    parser.add_argument("--tau", type=int, help="expansion factor, with --model")
    parser.add_argument("--groups", type=int, help="groups, with --model")
    parser.add_argument("--num-classes", type=int, help="classes of the read-out, with --model (default the dataset's)")
    parser.add_argument("--data", metavar="ROOT", default="data", help="folder that has the dataset")
    parser.add_argument("--dataset", default="imagenet", choices=tuple(DATASETS))
    parser.add_argument(
        "--split", default="test", choices=("val", "test"), help="imagenet: its val folder in both cases"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="the first N images only")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default the dataset's")
    parser.add_argument("--crop-pct", type=float, help="share of the resized side that is cut (default the recipe's)")
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="default the recipe's")
    parser.add_argument("--mean", type=float, nargs="+", help="of the normalisation (default the recipe's)")
    parser.add_argument("--std", type=float, nargs="+", help="of the normalisation (default the recipe's)")
    parser.add_argument("--backend", choices=("latent", "packed"), help="default what the file holds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    parser.add_argument("--json", metavar="FILE", help="write the result here too")
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """What --json writes: the network, its file and cost, the data, and one entry of `rows` for each way to run it."""
    check_counts(**{"batch size": args.batch_size, "image size": args.image_size or 1})
    if args.limit < 0 or args.workers < 0:
        raise InputError(f"limit={args.limit} and workers={args.workers} were given, 0 or more was expected")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was given and torch sees no GPU: use --device cpu")
    if args.split == "val" and args.dataset not in ("imagenet", "generated"):
        raise InputError(f"dataset {args.dataset} has no validation images of its own: use --split test")
    info = dataset_info(args.dataset)
    network, file = _load(args, info)
    spec = model_spec(network)
    assert spec is not None
    augmentation = _augmentation(args, spec.name)
    size = args.image_size or info.size
    cost = count(network, (info.channels, size, size))
    forms, warning = _forms(network, args, file)
    data = ClassificationDataModule(
        dataset=args.dataset,
        root=args.data,
        batch_size=args.batch_size,
        num_workers=args.workers,
        image_size=size,
        num_classes=spec.options.get("num_classes"),
        test_size=args.limit,
        augmentation=augmentation,
    )
    data.setup("test")
    images, rows, seconds = score(forms, data, args.device)
    return {
        "network": spec.name,
        "options": dict(spec.options),
        **file,
        **{key: getattr(cost, key) for key in ("ops", "bops", "flops", "params", "binary_params")},
        "dataset": args.dataset,
        "root": args.data,
        "label_order": data.label_order,
        "images": images,
        "image_size": size,
        "crop_pct": augmentation.crop_pct,
        "interpolation": augmentation.eval_interpolation,
        "mean": augmentation.mean or info.mean,
        "std": augmentation.std or info.std,
        "backend": PACKED if PACKED in forms else "latent",
        "device": args.device,
        "seconds": seconds,
        "rows": [asdict(row) for row in rows],
        "warning": warning,
    }


def _load(args: argparse.Namespace, info: DatasetInfo) -> tuple[nn.Module, dict[str, Any]]:
    """The network of the file, and what is said of the file."""
    ours = args.path.endswith(".safetensors")
    given = {key: getattr(args, key) for key in ("num_classes", "tau", "groups") if getattr(args, key) is not None}
    if args.model is None:
        if not ours:
            raise InputError(f"{args.path} does not name its network: give --model, esbnn models lists the names")
        if given:
            raise InputError(f"{', '.join(given)} cannot be given without --model: {args.path} has its own options")
        network = load_checkpoint(args.path)
    else:
        if info.channels != 3:
            given["in_channels"] = info.channels
        network = create_model(args.model, **{"num_classes": info.classes, **given})
        network = load_checkpoint(args.path, network) if ours else network.eval()
    report = None if ours else load_official(network, args.path)
    tensors = report.tensors if report else len(read_checkpoint(args.path).tensors)
    spec = model_spec(network)
    assert spec is not None
    if spec.input_size[0] != info.channels:
        raise InputError(
            f"network {spec.name} takes images of {spec.input_size[0]} channels, {args.dataset} has {info.channels}: "
            f"name the --dataset that it was trained on"
        )
    layers = [layer for _, layer in binary_layers(network)]
    heated = [layer.quantizer for layer in layers if isinstance(layer.quantizer, Temperature)]
    heat = [quantizer.temperature.item() for quantizer in heated]
    return network, {
        "file": args.path,
        "sha256": file_sha256(args.path),
        "tensors": tensors,
        "zeros": exact_zeros(network) if layers else None,
        "temperature": [min(heat), max(heat)] if heat else None,
        "sign_below": heated[0].sign_below if heated else None,
        "temperature_noted": report.noted if report else None,
    }


def _augmentation(args: argparse.Namespace, network: str) -> Augmentation:
    """The recipe's evaluation transform with what the command line says otherwise."""
    given = {"crop_pct": args.crop_pct, "eval_interpolation": args.interpolation}
    given |= {key: tuple(getattr(args, key)) if getattr(args, key) else None for key in ("mean", "std")}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return replace(evaluation_recipe(network, args.dataset), **changes)


def _forms(network: nn.Module, args: argparse.Namespace, file: dict[str, Any]) -> tuple[dict[str, nn.Module], str]:
    """The network in each way it is to be run, on its device, and a warning or ""."""
    packed = any(isinstance(module, PackedLayer) for module in network.modules())
    if packed and args.backend == "latent":
        raise InputError(f"{args.path} is packed and holds no latent weights: use --backend packed")
    quantizers = [layer.quantizer for _, layer in binary_layers(network)]
    hot = any(isinstance(quantizer, Temperature) and not quantizer.sign_mode() for quantizer in quantizers)
    highest, bound = (file["temperature"][1], file["sign_below"]) if hot else (0.0, 0.0)
    if hot and args.backend == "packed":
        raise InputError(
            f"{args.path} has weight temperatures up to {highest:.3g} and so real weights, less than {bound:g} was "
            f"expected to pack: use --backend latent, which shows the network with forced sign too"
        )
    forms, warning = {PACKED if packed else STORED: network}, ""
    if args.backend == "packed" and not packed:
        forms = {PACKED: pack_(network)}
    if hot:
        forms[FORCED] = copy.deepcopy(network)
        for _, layer in binary_layers(forms[FORCED]):
            if isinstance(layer.quantizer, Temperature):
                layer.quantizer.temperature.zero_()
        warning = (
            f"WARNING: weight temperatures reach {highest:.3g}, so the weights as stored are real numbers (the script "
            f"published for ES-BNext never lowers them): the accuracy of the binary network is the row {FORCED!r}"
        )
    elif any(isinstance(quantizer, RealWeights) for quantizer in quantizers):
        warning = "WARNING: the weights are real numbers, step 1 of a two-step recipe: this is no binary network yet"
    return {name: form.to(args.device, memory_format=torch.channels_last) for name, form in forms.items()}, warning


def _text(r: dict[str, Any]) -> str:
    """The result as a person reads it."""
    options = ", ".join(f"{key}={value}" for key, value in r["options"].items())
    if DATASETS[r["dataset"]].size <= SMALL:
        transform = f"whole image at {r['image_size']}"
    else:
        resized = int(r["image_size"] / r["crop_pct"])
        transform = (
            f"resize {resized} {r['interpolation']}, centre crop {r['image_size']} (crop_pct {r['crop_pct']:.4g})"
        )
    latent, heat = [], r["temperature"]
    if r["zeros"] is not None:
        latent.append(f"zeros        {r['zeros']:,} among the latent weights (their sign is +1)")
    if heat is not None:
        noted = r["temperature_noted"]
        told = f"; the file's own history ends at {noted:.3g}" if noted is not None else ""
        signs = f"weights are signs below {r['sign_below']:g}"
        latent.append(f"temperature  {heat[0]:.3g} to {heat[1]:.3g} ({signs}{told})")
    lines = [
        f"network      {r['network']} ({options})",
        f"file         {r['file']}",
        f"sha256       {r['sha256']}",
        f"tensors      {r['tensors']} read",
        *latent,
        f"OPs          {r['ops'] / 1e8:.4f}e8 (BOPs {r['bops'] / 1e9:.4f} G / 64 + FLOPs {r['flops'] / 1e8:.4f}e8)",
        f"parameters   {r['params']:,} of which 1-bit {r['binary_params']:,}",
        f"images       {r['images']:,} of {r['dataset']} in {r['root']}"
        + (f", labels in the {r['label_order']}" if r["label_order"] else ""),
        f"transform    {transform}, mean {_numbers(r['mean'])}, std {_numbers(r['std'])}",
        f"time         {r['seconds']:.1f} s on {r['device']}, {r['images'] / r['seconds']:.1f} images/s",
        "",
        f"{'weights':12} {'top-1':>8} {'top-5':>8}",
        *(f"{row['weights']:12} {row['top1']:7.3f}% {row['top5']:7.3f}%" for row in r["rows"]),
        *(["", r["warning"]] if r["warning"] else []),
    ]
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
