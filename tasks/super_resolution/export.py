"""At the end of fit: the pipeline in a folder that diffusers reads."""

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from tasks.super_resolution.pipeline import SuperResolutionPipeline


class ExportPipeline(Callback):
    """Writes `pipeline`, the network as training left it and its sampler, for SuperResolutionPipeline.from_pretrained.

    Args:
        directory: that the folder is put into, default the trainer's log directory.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook; the first process writes."""
        # asked for by all: log_dir is told from the first process to the others
        folder = Path(self.directory or trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            module: Any = pl_module
            save_pipeline(module.pipeline, folder / "pipeline")
            rank_zero_info(f"{folder / 'pipeline'}: for SuperResolutionPipeline.from_pretrained")


def save_pipeline(pipeline: SuperResolutionPipeline, folder: Path) -> None:
    """Write the pipeline's files beside `folder` and put them in its place when all are there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        # a copy on the CPU: moving the trained network itself would leave its optimizer behind
        network = copy.deepcopy(pipeline.unet).cpu()
        SuperResolutionPipeline(network, pipeline.scheduler).save_pretrained(place / "new")
        if folder.exists():
            os.replace(folder, place / "old")
        os.replace(place / "new", folder)
    finally:
        shutil.rmtree(place)
