"""A module of classification to train, and the comparison of two states."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from esbnn_core.lit.callbacks import EpochSeed
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


def quiet_trainer(folder: Path, **options: Any) -> L.Trainer:
    """A CPU trainer that writes under `folder` and reseeds every epoch."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder),
        "callbacks": [EpochSeed(0)],
    }
    return L.Trainer(**{**defaults, **options})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
