"""The data sets of the tables, by the names of published.csv: their names for the tasks, and whether they are there."""

import os
import shlex
from pathlib import Path

from tasks.evaluate.datasets import DATASETS

TABLE_DATASETS = {
    "ImageNet-1k": DATASETS["imagenet"],
    "CIFAR-10": DATASETS["cifar10"],
    "VOC07 test": DATASETS["VOC2007"],
    **{name: DATASETS[name] for name in ("Set5", "B100", "Urban100", "Manga109")},
}
METRIC_NAMES = {"mAP": "map_11point", "PSNR_dB": "psnr", "SSIM": "ssim", "LPIPS": "lpips"}
"""What the tasks call a metric of published.csv, if the name differs."""


def data_folder(dataset: str, data: str) -> str:
    """The root that the task takes."""
    folder = TABLE_DATASETS[dataset].folder
    return os.path.join(data, folder) if folder else data


def describe_missing_data(dataset: str, data: str) -> str:
    """A sentence about what is missing below --data and how to get it, "" if the data is there."""
    found = TABLE_DATASETS[dataset]
    if any((Path(data) / path).exists() for path in found.evidence):
        return ""
    return f"{dataset} is not at {Path(data) / found.evidence[0]}: {found.get}"


def evaluate_command(checkpoint: str, dataset: str, data: str, default: bool) -> str:
    """The command that measures an entry of the catalogue.

    Args:
        checkpoint: name of the entry.
        dataset: by the names of published.csv.
        data: --data.
        default: whether this is the dataset of the entry, which needs no option.
    """
    words = ["python", "-m", "tasks.evaluate", checkpoint]
    words += [] if default else ["--dataset", TABLE_DATASETS[dataset].name]
    return shlex.join([*words, "--data", data_folder(dataset, data)])
