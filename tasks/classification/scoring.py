"""Measure top-1 and top-5 of networks on the test images of a data module, in a plain loop."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.base import parameter_dtype
from esbnn_core.lit.data import IGNORE
from tasks.classification.data import ClassificationDataModule


@dataclass(frozen=True)
class Row:
    """The result of one network.

    Attributes:
        weights: name of the network.
        right1: images whose label is the first guess.
        right5: images whose label is among the first five.
        top1: right1 in percent.
        top5: right5 in percent.
    """

    weights: str
    right1: int
    right5: int
    top1: float
    top5: float


@torch.inference_mode()
def score(
    networks: Mapping[str, nn.Module], data: ClassificationDataModule, device: str
) -> tuple[int, list[Row], float]:
    """Run all networks over the test split in one pass, every image once.

    Args:
        networks: by name, on `device` and in evaluation mode.
        data: set up for "test".
        device: "cpu" or "cuda".

    Returns:
        Images counted, a row for each network, seconds.

    Raises:
        InputError: logits that are not finite, or an image that cannot be read.
    """
    right = {name: [0, 0] for name in networks}
    images, total, start = 0, len(data.splits["test"]), time.perf_counter()
    for batch, labels in data.test_dataloader():
        batch = batch.to(device, memory_format=torch.channels_last)
        labels = labels.to(device)
        images += int((labels != IGNORE).sum())
        for name, network in networks.items():
            logits = network(batch.to(parameter_dtype(network))).float()
            if not torch.isfinite(logits).all():
                raise InputError(
                    f"the network ({name}) gives logits that are not finite: give the options it was trained with"
                )
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            right[name][0] += int(hits[:, 0].sum())
            right[name][1] += int(hits.sum())
        if sys.stderr.isatty():
            print(f"\r{images:,} of {total:,} images", end="\n" if images == total else "", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    return images, [Row(name, a, b, 100 * a / images, 100 * b / images) for name, (a, b) in right.items()], seconds
