"""A network and images that are small enough to train and sample in a test."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image

from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule
from tasks.super_resolution.unet import BIDiffSRUNet

EMBEDDED = Path(__file__).parents[2] / "data" / "sr"
OPTIONS: dict[str, Any] = {
    "inner_channels": 8,
    "channel_mults": [1, 2],
    "norm_groups": 2,
    "res_blocks": 1,
    "real_resolutions": [256],
}


def make_unet(**options: Any) -> BIDiffSRUNet:
    """The tiny network in evaluation mode, started from a fixed seed; sides are halved once."""
    torch.manual_seed(0)
    network = BIDiffSRUNet(**{**OPTIONS, **options}).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "shift" in name or "slope" in name:  # start equal for all timesteps
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def make_module(**options: Any) -> SuperResolutionModule:
    """The tiny network with Adam at 2e-3, two steps of sampling."""
    L.seed_everything(0, verbose=False)
    unet = {**OPTIONS, **options.pop("unet", {})}
    defaults: dict[str, Any] = {
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        "num_inference_steps": 2,
    }
    return SuperResolutionModule(unet=unet, **{**defaults, **options})


def write_sets(root: Path) -> Path:
    """Pieces of the embedded images: `pieces`, 6 of 48x40 to train on, and the sets `small` (3) and `odd` (2)."""
    with Image.open(EMBEDDED / "Set5" / "HR" / "butterfly.webp") as image:
        whole = np.array(image.convert("RGB"))
    sets = {
        "pieces": [(20 + 30 * i, 40, 48, 40) for i in range(6)],
        "small": [(60, 20 + 50 * i, 40, 36) for i in range(3)],
        "odd": [(100, 90 + 40 * i, 38, 42 + 2 * i) for i in range(2)],
    }
    for name, boxes in sets.items():
        (root / name).mkdir(parents=True)
        for i, (top, left, height, width) in enumerate(boxes):
            Image.fromarray(whole[top : top + height, left : left + width]).save(root / name / f"{name}{i}.png")
    return root


def make_sets(root: Path, **options: Any) -> SRDataModule:
    """A data module over the sets of write_sets."""
    defaults: dict[str, Any] = {"train": ["pieces"], "val": ["small"], "test": ["small", "odd"]}
    return SRDataModule(**{"root": str(root), **defaults, "patch": 16, "batch_size": 2, **options})
