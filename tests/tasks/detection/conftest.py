"""Shared pieces of the detection tests: the embedded images, a small detector, a trainer without noise."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule

EMBEDDED = Path(__file__).parents[2] / "data" / "voc"
TINY = str(Path(__file__).parent / "tiny_ssd.py")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A copy of the embedded VOCdevkit that a test may damage."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "VOCdevkit"))


@pytest.fixture
def make_voc() -> Callable[..., VOCDataModule]:
    """A data module over the embedded images, 8 to train on and 4 to test on."""

    def make(**options: Any) -> VOCDataModule:
        defaults: dict[str, Any] = {
            "root": str(EMBEDDED),
            "train": ["VOC2007/train"],
            "pipeline": TINY,
            "batch_size": 2,
        }
        return VOCDataModule(**{**defaults, **options})

    return make


def make_detector(**options: Any) -> DetectionModule:
    """The tiny SSD started from a fixed seed, SGD."""
    L.seed_everything(0, verbose=False)
    defaults: dict[str, Any] = {
        "model": TINY,
        "from_scratch": True,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    }
    return DetectionModule(**{**defaults, **options})
