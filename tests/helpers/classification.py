"""A module of classification to train, and the comparison of two states."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from tasks.classification.module import ClassificationModule


def make_module(network: str = "es_reactnet_resnet8", **options: Any) -> ClassificationModule:
    """A grey-image module started from a fixed seed, Adam at 5e-3."""
    L.seed_everything(0, verbose=False)
    extra = {"in_channels": 1, **options.pop("network_options", {})}
    return ClassificationModule(
        network,
        network_options=extra,
        **{"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=5e-3), **options},
    )


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
