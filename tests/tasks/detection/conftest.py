"""Shared pieces of the detection tests: the embedded images, a small detector, a trainer without noise."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.detection.data import VOCDataModule
from tests.helpers.detection.tiny import EMBEDDED, TINY


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
