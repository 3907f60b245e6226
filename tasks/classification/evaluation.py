"""What `python -m tasks.evaluate` does for a classifier: read the file strictly, count it, score it on test images."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from esbnn_core.checkpoint.format import Checkpoint, read_checkpoint
from esbnn_core.checkpoint.network import build_network
from esbnn_core.checkpoint.official import load_official
from esbnn_core.counting import count
from esbnn_core.errors import InputError, check_counts
from esbnn_core.layers.base import binary_layers, exact_zeros
from esbnn_core.layers.quantizers import RealWeights, Temperature
from esbnn_core.models import create_model, model_spec
from esbnn_core.packed.layers import is_packed
from esbnn_core.transforms.pack import pack_
from tasks.classification.augment import SMALL, Augmentation, Interpolation, evaluation_recipe
from tasks.classification.data import ClassificationDataModule
from tasks.classification.datasets import DATASETS, DatasetInfo, dataset_info
from tasks.classification.scoring import score

STORED, FORCED, PACKED = "as stored", "forced sign", "packed"
METRICS = ("top1", "top5")


@dataclass(frozen=True)
class Request:
    """What to evaluate, and how.

    Attributes:
        path: official file, or .safetensors of ours.
        checkpoint: what a file of ours holds, if it was read already.
        model: network of the file; one of ours names its own.
        options: of the network, with `model`.
        dataset: of DATASETS, or "" to read and count the file without measuring anything.
        data: folder of the dataset.
        split: "test", or "val" of a dataset that has one.
        limit: evaluate only this many images, the first ones or, of a folder of classes, evenly spread; 0 for all.
        image_size: side in pixels; this and the next four default to those of the network's recipe on the dataset.
        crop_pct: share of the resized side that is cut.
        interpolation: of the resizing.
        mean: of the normalisation, one a channel.
        std: of the normalisation, one a channel.
        backend: "auto" runs what the file holds.
        device: "cpu" or "cuda".
        batch_size: images at a time.
        workers: processes that read images.
    """

    path: str
    checkpoint: Checkpoint | None = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "imagenet"
    data: str = "data"
    split: str = "test"
    limit: int = 0
    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    backend: Literal["auto", "latent", "packed"] = "auto"
    device: str = "cpu"
    batch_size: int = 128
    workers: int = 0


def evaluate(asked: Request) -> dict[str, Any]:
    """Measure a classifier: its network and cost, the data, and one entry of `rows` for each way to run it.

    `metrics` are those of the first row: for a BNext whose temperature is high, the weights as stored.

    Raises:
        InputError: a request, file or data set that does not fit.
    """
    check_counts(**{"batch size": asked.batch_size, "image size": 1 if asked.image_size is None else asked.image_size})
    if asked.limit < 0 or asked.workers < 0:
        raise InputError(
            f"limit and workers must be 0 or more, got {asked.limit} and {asked.workers}: give other numbers"
        )
    if asked.split not in ("test", "val"):
        raise InputError(f"split must be test or val, got {asked.split!r}: give one of them")
    if asked.split == "val" and asked.dataset not in ("imagenet", "generated"):
        raise InputError(f"dataset {asked.dataset} has no validation images of its own: use --split test")
    info = dataset_info(asked.dataset) if asked.dataset else None
    network, file = _load(asked, info)
    spec = model_spec(network)
    assert spec is not None
    size = asked.image_size or (info.size if info else spec.input_size[1])
    cost = count(network, (spec.input_size[0], size, size))
    forms, warning = _forms(network, asked, file)
    result = {
        "network": spec.name,
        "options": dict(spec.options),
        **file,
        **{key: getattr(cost, key) for key in ("ops", "bops", "flops", "params", "binary_params")},
        "backend": PACKED if PACKED in forms else "latent",
        "device": asked.device,
        "image_size": size,
        "warning": warning,
    }
    if info is None:
        return {**result, "dataset": "", "split": "", "images": 0, "seconds": 0.0, "rows": [], "metrics": {}}
    augmentation = _augmentation(asked, spec.name)
    data = ClassificationDataModule(
        dataset=asked.dataset,
        root=asked.data,
        batch_size=asked.batch_size,
        num_workers=asked.workers,
        image_size=size,
        num_classes=spec.options.get("num_classes"),
        test_size=asked.limit,
        augmentation=augmentation,
    )
    data.setup("test")
    images, rows, seconds = score(forms, data, asked.device)
    return {
        **result,
        "dataset": asked.dataset,
        "split": asked.split,
        "root": asked.data,
        "label_order": data.label_order,
        "images": images,
        "crop_pct": augmentation.crop_pct,
        "interpolation": augmentation.eval_interpolation,
        "mean": augmentation.mean or info.mean,
        "std": augmentation.std or info.std,
        "seconds": seconds,
        "rows": [asdict(row) for row in rows],
        "metrics": {name: getattr(rows[0], name) for name in METRICS},
    }


def _load(asked: Request, info: DatasetInfo | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of the file, and what is reported of the file."""
    held = asked.checkpoint
    if held is None and asked.path.endswith(".safetensors"):
        held = read_checkpoint(asked.path)
    given = dict(asked.options)
    if asked.model is None:
        if held is None:
            raise InputError(f"{asked.path} does not name its network: give --model, esbnn models lists the names")
        if given:
            raise InputError(f"{', '.join(given)} cannot be given without --model: {asked.path} has its own options")
        network = build_network(held)
    else:
        if info is not None and info.channels != 3:
            given.setdefault("in_channels", info.channels)
        classes = {} if info is None else {"num_classes": info.classes}
        network = create_model(asked.model, **{**classes, **given})
        network = network.eval() if held is None else build_network(held, network)
    report = load_official(network, asked.path) if held is None else None
    tensors = {} if held is None else held.tensors
    spec = model_spec(network)
    if spec is None:
        raise InputError(f"{asked.path} names no network of ours: if it is not a classifier, give its --config")
    if info is not None and spec.kind != "classifier":
        raise InputError(f"network {spec.name} gives feature maps and no classes: there is no accuracy to measure")
    if info is not None and spec.input_size[0] != info.channels:
        raise InputError(
            f"network {spec.name} takes images of {spec.input_size[0]} channels, {asked.dataset} has {info.channels}: "
            f"name the --dataset that it was trained on"
        )
    layers = [layer for _, layer in binary_layers(network)]
    annealed = [layer.quantizer for layer in layers if isinstance(layer.quantizer, Temperature)]
    temperatures = [quantizer.temperature.item() for quantizer in annealed]
    return network, {
        "tensors": report.tensors if report else len(tensors),
        "zeros": exact_zeros(network) if layers else None,
        "temperature": [min(temperatures), max(temperatures)] if temperatures else None,
        "sign_below": annealed[0].sign_below if annealed else None,
        "temperature_noted": report.noted if report else None,
    }


def _augmentation(asked: Request, network: str) -> Augmentation:
    """The recipe's evaluation transform with the changes that were asked for."""
    given = {
        "crop_pct": asked.crop_pct,
        "eval_interpolation": asked.interpolation,
        "mean": asked.mean,
        "std": asked.std,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return replace(evaluation_recipe(network, asked.dataset), **changes)


def _forms(network: nn.Module, asked: Request, file: dict[str, Any]) -> tuple[dict[str, nn.Module], str]:
    """The network in each way it is to be run, on its device, and a warning or ""."""
    packed = is_packed(network)
    if packed and asked.backend == "latent":
        raise InputError(f"{asked.path} is packed and holds no latent weights: use --backend packed")
    quantizers = [layer.quantizer for _, layer in binary_layers(network)]
    real = any(isinstance(quantizer, Temperature) and not quantizer.sign_mode() for quantizer in quantizers)
    highest, bound = (file["temperature"][1], file["sign_below"]) if real else (0.0, 0.0)
    if real and asked.backend == "packed":
        raise InputError(
            f"weight temperatures of a file to pack must be below {bound:g}, got {highest:.3g} in {asked.path}, whose "
            f"weights are real: use --backend latent, which shows the network with forced sign too"
        )
    forms, warning = {PACKED if packed else STORED: network}, ""
    if asked.backend == "packed" and not packed:
        forms = {PACKED: pack_(network)}
    if real:
        forms[FORCED] = copy.deepcopy(network)
        for _, layer in binary_layers(forms[FORCED]):
            if isinstance(layer.quantizer, Temperature):
                layer.quantizer.temperature.zero_()
        warning = (
            f"WARNING: weight temperatures reach {highest:.3g}, so the weights as stored are real numbers (the script "
            f"published for ES-BNext never lowers them): the accuracy of the binary network is the row {FORCED!r}"
        )
    elif any(isinstance(quantizer, RealWeights) for quantizer in quantizers):
        warning = "WARNING: the weights are real numbers, step 1 of a two-step recipe: this is not a binary network yet"
    return {name: form.to(asked.device, memory_format=torch.channels_last) for name, form in forms.items()}, warning


def format_lines(r: Mapping[str, Any]) -> list[str]:
    """The result for people, without the network and its file; the rows and a warning come last."""
    lines = []
    if r["zeros"] is not None:
        lines.append(f"zeros        {r['zeros']:,} among the latent weights (their sign is +1)")
    if (span := r["temperature"]) is not None:
        noted = r["temperature_noted"]
        history = f"; the file's own history ends at {noted:.3g}" if noted is not None else ""
        signs = f"weights are signs below {r['sign_below']:g}"
        lines.append(f"temperature  {span[0]:.3g} to {span[1]:.3g} ({signs}{history})")
    if r["rows"]:
        lines += [*_describe_images(r), "", f"{'weights':12} {'top-1':>8} {'top-5':>8}"]
        lines += [f"{row['weights']:12} {row['top1']:7.3f}% {row['top5']:7.3f}%" for row in r["rows"]]
    return lines + (["", r["warning"]] if r["warning"] else [])


def _describe_images(r: Mapping[str, Any]) -> list[str]:
    if DATASETS[r["dataset"]].size <= SMALL:
        transform = f"whole image at {r['image_size']}"
    else:
        resized = int(r["image_size"] / r["crop_pct"])
        transform = (
            f"resize {resized} {r['interpolation']}, centre crop {r['image_size']} (crop_pct {r['crop_pct']:.4g})"
        )
    return [
        f"images       {r['images']:,} of {r['dataset']} in {r['root']}"
        + (f", labels in the {r['label_order']}" if r["label_order"] else ""),
        f"transform    {transform}, mean {_join_numbers(r['mean'])}, std {_join_numbers(r['std'])}",
        f"time         {r['seconds']:.1f} s on {r['device']}, {r['images'] / r['seconds']:.1f} images/s",
    ]


def _join_numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:g}" for value in values)
