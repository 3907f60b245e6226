"""The embedded images and the small detector over them."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from tasks.detection.module import DetectionModule

EMBEDDED = Path(__file__).parents[2] / "data" / "voc"


TINY = str(Path(__file__).parent / "tiny_ssd.py")


def make_detector(**options: Any) -> DetectionModule:
    """The tiny SSD started from a fixed seed, SGD."""
    L.seed_everything(0, verbose=False)
    defaults: dict[str, Any] = {
        "model": TINY,
        "from_scratch": True,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    }
    return DetectionModule(**{**defaults, **options})
