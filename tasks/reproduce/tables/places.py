"""Where the data of the tables is below --data, how a person gets it, and what the tasks call it."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """One data set of the tables.

    Attributes:
        name: as the tasks call it.
        folder: below --data, the root that the task takes.
        evidence: paths below --data; one of them exists if the data is there.
        get: how to get it.
    """

    name: str
    folder: str
    evidence: tuple[str, ...]
    get: str


_SR = "download its archive from the link in the README of BI-DiffSR or of BasicSR and unpack it there"
PLACES = {
    "ImageNet-1k": Place(
        "imagenet",
        "imagenet",
        ("imagenet/val",),
        "sign in at image-net.org, download ILSVRC2012 and unpack it into train/WNID and val/WNID there",
    ),
    "CIFAR-10": Place(
        "cifar10",
        "",
        ("cifar-10-batches-py",),
        "unpack cifar-10-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html there",
    ),
    "VOC07 test": Place(
        "VOC2007",
        "VOCdevkit",
        ("VOCdevkit/VOC2007/ImageSets/Main/test.txt",),
        "unpack VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar of "
        "host.robots.ox.ac.uk/pascal/VOC there",
    ),
    "Set5": Place("Set5", "sr", ("sr/Set5", "sr/benchmark/Set5"), _SR),
    "B100": Place("B100", "sr", tuple(f"sr/{a}{n}" for a in ("", "benchmark/") for n in ("B100", "BSD100")), _SR),
    "Urban100": Place("Urban100", "sr", ("sr/Urban100", "sr/benchmark/Urban100"), _SR),
    "Manga109": Place(
        "Manga109",
        "sr",
        ("sr/Manga109", "sr/benchmark/Manga109"),
        "ask for it at www.manga109.org and unpack it there",
    ),
}
METRIC_NAMES = {"mAP": "map_11point", "PSNR_dB": "psnr", "SSIM": "ssim", "LPIPS": "lpips"}
"""What the tasks call a metric of published.csv, if the name differs."""


def data_folder(dataset: str, data: str) -> str:
    """The root that the task takes."""
    folder = PLACES[dataset].folder
    return os.path.join(data, folder) if folder else data


def describe_missing_data(dataset: str, data: str) -> str:
    """A sentence about what is missing below --data and how to get it, "" if the data is there."""
    place = PLACES[dataset]
    if any((Path(data) / path).exists() for path in place.evidence):
        return ""
    return f"{dataset} is not at {Path(data) / place.evidence[0]}: {place.get}"


def evaluate_command(checkpoint: str, dataset: str, data: str, default: bool) -> str:
    """The command that measures an entry of the catalogue.

    Args:
        checkpoint: name of the entry.
        dataset: by the names of published.csv.
        data: --data.
        default: whether this is the dataset of the entry, which needs no option.
    """
    words = ["python", "-m", "tasks.evaluate", checkpoint, *([] if default else ["--dataset", PLACES[dataset].name])]
    return shlex.join([*words, "--data", data_folder(dataset, data)])
