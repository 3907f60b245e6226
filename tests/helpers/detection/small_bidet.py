"""BiDet's own detectors over the embedded images, so small that a step takes less than a second."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from esbnn_core.files import write_atomically
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule
from tests.helpers.detection.faster_rcnn import CONFIGS
from tests.helpers.detection.narrow import head_widths
from tests.helpers.detection.tiny import EMBEDDED, TINY

TINY_BIDET = str(Path(__file__).parent / "tiny_bidet_ssd.py")
FEW_REGIONS = {
    "train_cfg.rcnn.sampler.num": 8,
    "train_cfg.rpn_proposal.max_per_img": 40,
    "test_cfg.rpn.max_per_img": 10,
}


def small_images(folder: Path) -> str:
    """An mmdet config file: the pipelines of Faster R-CNN with images of 192x144, drawn anew every epoch."""
    path = folder / "pipeline.py"
    text = (CONFIGS / "voc_faster_rcnn_r18.py").read_text()
    whole = "scale=(10000, 600), keep_ratio=True"
    assert text.count(whole) == 1
    # atomically: two processes of one test write and read it at the same time
    write_atomically(path, text.replace(whole, "scale=(192, 144), keep_ratio=False").encode())
    return str(path)


def drops_after_one(optimizer: torch.optim.Optimizer) -> Any:
    """A schedule by epochs whose first decay comes behind the first epoch."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])


def detector(name: str, **options: Any) -> DetectionModule:
    """NAME_faster_rcnn_r18, or tiny_bidet_ssd, from a fixed seed, Adam, the bottleneck on from the second epoch."""
    L.seed_everything(0, verbose=False)
    ssd = name == "ssd"
    return DetectionModule(
        TINY_BIDET if ssd else f"{CONFIGS}/{name}_faster_rcnn_r18.py",
        **{
            "overrides": head_widths(ssd) if ssd else {**FEW_REGIONS, **head_widths()},
            "from_scratch": True,
            "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
            "lr_scheduler": drops_after_one,
            "lr_interval": "epoch",
            **options,
        },
    )


def images(name: str, folder: Path, **options: Any) -> VOCDataModule:
    """The embedded images for a detector of that name, two a step."""
    pipeline = TINY if name == "ssd" else small_images(folder)
    defaults = {"root": str(EMBEDDED), "train": ["VOC2007/train"], "pipeline": pipeline, "batch_size": 2}
    return VOCDataModule(**{**defaults, **options})
