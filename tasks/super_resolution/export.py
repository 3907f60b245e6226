"""ExportPipeline: writes the pipeline at the end of fit, in a folder that diffusers reads."""

import copy
import ctypes
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from esbnn_core.files import folder_beside
from esbnn_core.lit.callbacks import run_folder, took_steps
from esbnn_core.lit.precision import as_exported
from tasks.super_resolution.pipeline import SuperResolutionPipeline

_HERE, _SWAP = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


class ExportPipeline(Callback):
    """Writes the folder `pipeline`, the trained network and its sampler, for SuperResolutionPipeline.from_pretrained.

    Args:
        directory: parent of the folder, default the trainer's log directory.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook; the first process writes."""
        # in every process, because log_dir is broadcast from the first one
        folder = run_folder(trainer, self.directory)
        if trainer.is_global_zero and took_steps(trainer, folder):
            module: Any = pl_module
            rank_zero_info(f"{folder}: {save_pipeline(module.pipeline, folder / 'pipeline')}")


def save_pipeline(pipeline: SuperResolutionPipeline, folder: Path) -> str:
    """Write the pipeline's files beside `folder` and move them there when they are complete; returns a phrase on it.

    A network in half precision is written in float32, as in weights.safetensors.
    """
    with folder_beside(folder) as temporary:
        # a copy on the CPU, because moving the trained network would separate it from its optimizer
        network = as_exported(copy.deepcopy(pipeline.unet).cpu())
        SuperResolutionPipeline(network, pipeline.scheduler).save_pretrained(temporary / "new")
        if folder.exists() and not _exchange(temporary / "new", folder):
            os.replace(folder, temporary / "old")
        if not folder.exists():
            os.replace(temporary / "new", folder)
    return f"{folder.name} for SuperResolutionPipeline.from_pretrained"


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that a killed process leaves the old or the new one; False where that fails."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or a C library before 2.28
        return False
    return bool(renameat2(_HERE, os.fsencode(one.absolute()), _HERE, os.fsencode(other.absolute()), _SWAP) == 0)
