"""A network as files of a folder: latent weights, and packed ones where its weights are signs."""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import lightning as L
from torch import nn

from esbnn_core.checkpoint.format import save_checkpoint
from esbnn_core.checkpoint.network import pack_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.files import folder_beside
from esbnn_core.layers.base import binary_layers
from esbnn_core.lit.precision import as_exported
from esbnn_core.transforms.as_built import spec_as_built
from esbnn_core.transforms.pack import pack_

LATENT, PACKED = "weights.safetensors", "packed.safetensors"


def write_weights(
    network: nn.Module, folder: Path, metric: Mapping[str, float], commit: str | None = None
) -> list[str]:
    """Write weights.safetensors and, where the weights are signs, packed.safetensors; returns a phrase on each.

    Args:
        network: latent, in any precision; files hold float32 for half precision (as_exported).
        folder: made if need be; a packed file in it that does not belong to these weights is removed.
        metric: saved with both.
        commit: of the source tree that trained, default the present one.

    Raises:
        InputError: a tensor that is not finite.
    """
    network = as_exported(network)
    latent, packed = folder / LATENT, folder / PACKED
    save_checkpoint(network, latent, metric=metric, commit=commit)
    written = f"{LATENT} {latent.stat().st_size:,} bytes"
    reason = _why_not_packed(network)
    if reason:
        packed.unlink(missing_ok=True)
        return [written, f"{PACKED} is not written: {reason}"]
    if spec_as_built(network)[0] is not None:
        pack_checkpoint(latent, packed)
    else:  # a network of a task's own, a detector, or changed: no name in the file can build it again
        save_checkpoint(pack_(copy.deepcopy(network).cpu().eval()), packed, metric=metric, commit=commit)
    return [written, f"{PACKED} {packed.stat().st_size:,} bytes"]


def _why_not_packed(network: nn.Module) -> str:
    layers = binary_layers(network)
    if not layers:
        return "the network has no binary layer"
    not_signs = [name for name, layer in layers if not layer.quantizer.sign_mode()]
    return f"{not_signs[0]} is not in sign mode" if not_signs else ""


def validation_metrics(trainer: L.Trainer) -> dict[str, float]:
    """What the last validation logged under val_."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}


def check_new_folder(folder: Path) -> None:
    """Raise InputError unless the folder does not exist or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "folder with files in it" if folder.is_dir() else "file"
        raise InputError(f"{folder} must be a new folder, got a {kind}: name another one, or remove it")


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a new folder whose files are all there or none.

    Args:
        folder: as check_new_folder wants it.
        write: writes the files into the folder that it is given.

    Raises:
        InputError: what check_new_folder and `write` refuse.
    """
    check_new_folder(folder)
    with folder_beside(folder) as temporary:
        (temporary / "new").mkdir()
        write(temporary / "new")
        os.replace(temporary / "new", folder)
