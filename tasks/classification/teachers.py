"""Teachers for soft labels, built when fit starts and never part of the student's state.

Teachers see the student's images, at its size: every recipe normalises with ImageNet's mean and deviation, as
torchvision's weights and DeiT expect. timm weights that were trained at another size or with another normalisation get
the student's images too, as in the originals (papers.md#bnext-teachers, #bnext-data).
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from esbnn_core.checkpoint.format import find_misfits
from esbnn_core.checkpoint.network import load_checkpoint
from esbnn_core.checkpoint.official import unwrap
from esbnn_core.checkpoint.torch_file import load_torch_file
from esbnn_core.errors import InputError, reason_of

CONTAINERS = ("model", "state_dict")
"""Keys under which files of teachers keep the tensors (DeiT: model)."""


class NetworkTeacher(ABC):
    """Builds a teacher network; a recipe names a subclass by class_path."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the network: (N, C, H, W) -> logits (N, num_classes)."""

    @abstractmethod
    def build_untrained(self, num_classes: int) -> nn.Module:
        """Build the same network with random weights and `num_classes` outputs, to try a recipe without a download."""


class TorchvisionTeacher(NetworkTeacher):
    """A torchvision classification model, e.g. ReActNet's teacher (papers.md#distributional-loss).

    The weights are read from torchvision's cache, or fetched by torchvision if there is a connection.

    Args:
        name: of torchvision, e.g. resnet34.
        weights: of the model, e.g. IMAGENET1K_V1.
    """

    def __init__(self, name: str = "resnet34", weights: str = "DEFAULT") -> None:
        self.name, self.weights = name, weights

    def build(self) -> nn.Module:
        place = "torchvision's cache"
        try:
            chosen = torchvision.models.get_model_weights(self.name)[self.weights]
            place = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(chosen.url))
            return torchvision.models.get_model(self.name, weights=chosen)
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise InputError(
                f"teacher {self.name} with weights {self.weights} cannot be built ({reason_of(error)}): name a "
                f"torchvision model and its weights, which are read from {place}; put the file there if there is no "
                f"connection"
            ) from error

    def build_untrained(self, num_classes: int) -> nn.Module:
        return torchvision.models.get_model(self.name, weights=None, num_classes=num_classes)


class TimmTeacher(NetworkTeacher):
    """A timm classification model, e.g. name=deit_small_patch16_224 (BinaryViT) or efficientnet_b0 (BNext).

    Args:
        name: of timm, with the tag of its weights if it matters, e.g. convnext_tiny.in12k_ft_in1k.
        file: None for timm's pretrained weights, read from its cache or fetched if there is a connection; or a local
            .pth or .safetensors file, loaded strictly, bare or under a key of CONTAINERS.
    """

    def __init__(self, name: str, file: str | None = None) -> None:
        self.name, self.file = name, file

    def build(self) -> nn.Module:
        if self.file is not None:
            return self._from_file(Path(self.file))
        timm = _timm()
        try:
            network: nn.Module = timm.create_model(self.name, pretrained=True)
            return network
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise InputError(
                f"teacher {self.name} of timm cannot be built ({reason_of(error)}): {self._place()}"
            ) from error

    def build_untrained(self, num_classes: int) -> nn.Module:
        network: nn.Module = _timm().create_model(self.name, pretrained=False, num_classes=num_classes)
        return network

    def _place(self) -> str:
        """Which place the pretrained weights are read from, as the end of a sentence."""
        timm = _timm()
        known = timm.get_pretrained_cfg(self.name) if timm.is_model(self.name.split(".")[0]) else None
        if known is None or not known.has_weights:
            return "name a timm model that has pretrained weights, or give a file of your own as `file`"
        if known.hf_hub_id:
            from huggingface_hub.constants import HF_HUB_CACHE

            place = os.path.join(HF_HUB_CACHE, "models--" + known.hf_hub_id.replace("/", "--"))
        else:
            place = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(known.url))
        return f"its weights are read from {place}, fill that with a connection, or give a local file as `file`"

    def _from_file(self, path: Path) -> nn.Module:
        timm = _timm()
        try:
            network: nn.Module = timm.create_model(self.name, pretrained=False)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"teacher must be a model of timm, got {self.name} ({reason_of(error)})") from error
        fix = "name the timm model that the file was saved from"
        return load_teacher(network, path, f"the teacher {self.name}", fix)


class CheckpointTeacher(NetworkTeacher):
    """A network from an esbnn .safetensors file, latent or packed.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def build(self) -> nn.Module:
        return load_checkpoint(self.path)

    def build_untrained(self, num_classes: int) -> nn.Module:
        """Build it from the file all the same: it is local, and only the file names the network."""
        return self.build()


def load_teacher(network: nn.Module, path: Path, name: str, fix: str) -> nn.Module:
    """Load a file strictly into a network, in place; returns it.

    Args:
        network: whose tensors the file has.
        path: as read_tensors.
        name: of the teacher in the error, and `fix`, what to do about it.

    Raises:
        InputError: as read_tensors; tensors that are missing, not expected or of another shape.
    """
    tensors = read_tensors(path)
    if faults := find_misfits(network.state_dict(), tensors):
        raise InputError(f"file {path} does not fit {name}: {faults}: {fix}")
    network.load_state_dict(tensors)
    return network


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pth or .safetensors file by name, bare or under a key of CONTAINERS.

    Raises:
        InputError: a missing file, or one that holds anything but tensors and plain containers.
    """
    if not path.is_file():
        raise InputError(f"teacher weights {path} do not exist: put the file there or change `file`")
    found: object
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            found = load(path.read_bytes())
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"teacher weights {path} cannot be read as plain tensors ({reason_of(error)})") from error
    else:
        found = load_torch_file(path, "teacher weights", "fetch the file again")
    tensors = unwrap(found, CONTAINERS)
    if tensors is None:
        raise InputError(
            f"teacher weights must be a mapping of tensors, bare or under {' or '.join(CONTAINERS)}, got something "
            f"else in {path}: give the file of a network"
        )
    return tensors


def _timm() -> Any:
    """timm, imported only if a teacher needs it: it takes seconds."""
    try:
        import timm
    except ImportError as error:
        raise InputError('a TimmTeacher needs timm: pip install "esbnn[classification]"') from error
    return timm
