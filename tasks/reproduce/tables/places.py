"""Where the data of the tables lies below --data, how a person gets it, and what the tasks call it."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """One data set of the tables.

    Attributes:
        name: for the tasks. folder: below --data, what the task takes as its root. sign: below --data, one of these
            is there where the data is. get: how to come by it.
    """

    name: str
    folder: str
    sign: tuple[str, ...]
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
"""What the tasks call a metric of published.csv, where it is another word."""


def data_folder(dataset: str, data: str) -> str:
    """What the task takes as its root."""
    folder = PLACES[dataset].folder
    return os.path.join(data, folder) if folder else data


def missing_data(dataset: str, data: str) -> str:
    """A sentence about what is lacking below --data, "" where the data is there."""
    place = PLACES[dataset]
    if any((Path(data) / sign).exists() for sign in place.sign):
        return ""
    return f"{dataset} is not at {Path(data) / place.sign[0]}: {place.get}"


def evaluate_command(checkpoint: str, dataset: str, data: str, own: bool) -> str:
    """The command that measures an entry of the catalogue. own: on the dataset that the entry is of."""
    words = ["python", "-m", "tasks.evaluate", checkpoint, *([] if own else ["--dataset", PLACES[dataset].name])]
    return shlex.join([*words, "--data", data_folder(dataset, data)])
