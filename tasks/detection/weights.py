"""What a detector starts from: a backbone of this project, of the originals, or of torchvision and mmdet."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from esbnn_core import create_model, load_checkpoint, model_spec
from esbnn_core.checkpoint.format import check_state, load_state
from esbnn_core.checkpoint.official import CONTAINERS, load_official, unwrap
from esbnn_core.errors import InputError
from esbnn_core.models import BiDetResNet, BiDetVGG16, BinaryResNet
from tasks.detection.models.resnet_c4 import ESBiDetResNet18, load_trunk_
from tasks.detection.models.ssd_vgg import ESBiDetVGG16

READ_OUTS = ("fc.", "head.", "classifier.")
"""What a classifier has behind its trunk, which a detector leaves behind; nothing else may be left."""
BIREAL = ("bireal_resnet18", "es_bireal_resnet18")
"""Classifiers that compute what BiDet's ResNet-18 of variant bireal does, under the same names."""


def load_backbone_(detector: nn.Module, path: str | Path) -> nn.Module:
    """Load the file of a trained backbone into a detector, all or nothing; returns the detector.

    Args:
        path: a .safetensors file of this project (a trunk or the classifier over it, for variant bireal of the ResNet
            a bireal_resnet18 too), or a file of the originals; for a detector of mmdet's own layers a .pth of plain
            tensors under the backbone's own names, with or without a read-out. What is left behind is told.

    Raises:
        InputError: a missing or unreadable file, one of another network, variant or shortcuts, or one that does not
            fit, by the names of its tensors.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise InputError(f"the detector {type(detector).__name__} has no backbone to load {path} into")
    ours = Path(path).suffix == ".safetensors"
    if isinstance(backbone, ESBiDetVGG16):
        if ours:
            options = _options(backbone.trunk)
            source = _source(path, "VGG-16", options["variant"], options["shortcuts"])
            load_state(backbone.trunk, _without_read_out(source.state_dict(), path), str(path))
        else:
            load_official(backbone.trunk, path)
    elif isinstance(backbone, ESBiDetResNet18):
        trunk: Any
        if ours:
            trunk = _source(path, "ResNet-18", backbone.variant, backbone.shortcuts)
        else:
            trunk = create_model("bidet_resnet18", num_classes=1000)
            load_official(trunk, path)
        load_trunk_(detector, trunk)
        _without_read_out(trunk.state_dict(), path)
    else:
        shared = getattr(getattr(detector, "roi_head", None), "shared_head", None)
        _load_plain_(backbone, shared, path)
    return detector


def _options(model: nn.Module) -> Mapping[str, Any]:
    spec = model_spec(model)
    return {} if spec is None else spec.options


def _source(path: str | Path, kind: Literal["VGG-16", "ResNet-18"], variant: str, shortcuts: bool) -> nn.Module:
    """The network of a file of this project, if it computes what the backbone does; tensors alone do not tell."""
    model, options = load_checkpoint(path), {}
    spec = model_spec(model)
    if isinstance(model, BinaryResNet) and spec is not None and spec.name in BIREAL and kind == "ResNet-18":
        options = {"variant": "bireal", "shortcuts": True}
    elif isinstance(model, BiDetVGG16 if kind == "VGG-16" else BiDetResNet):
        options = dict(_options(model))
    if not options:
        name = spec.name if spec else type(model).__name__
        raise InputError(f"{path} holds a {name}, BiDet's {kind} was expected: give its file")
    if (options["variant"], options["shortcuts"]) != (variant, shortcuts):
        raise InputError(
            f"{path} was trained with variant {options['variant']} and shortcuts {options['shortcuts']}, the backbone "
            f"has {variant} and {shortcuts}: give a file of the same, or set them by model.overrides"
        )
    return model


def _without_read_out(tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors but those of READ_OUTS, which are named on the console."""
    left = [name for name in tensors if name.startswith(READ_OUTS)]
    if left:
        rank_zero_info(f"{path}: the read-out ({', '.join(left)}) is left behind, all else is loaded")
    return {name: tensor for name, tensor in tensors.items() if name not in left}


def _load_plain_(backbone: nn.Module, shared: nn.Module | None, path: str | Path) -> None:
    """Plain tensors into a backbone of mmdet: every tensor of it, and nothing but a read-out left over.

    shared: the last stage of the network where a detector runs that on its regions; the file has it too.
    """
    if not Path(path).is_file():
        raise InputError(f"backbone file {path} does not exist: place it there or change model.backbone")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"backbone file {path} cannot be read as plain tensors ({reason}): fetch it again") from error
    tensors = unwrap(found, CONTAINERS)
    if tensors is None:
        raise InputError(f"backbone file {path} holds no mapping of tensors, bare or under {', '.join(CONTAINERS)}")
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    tensors = _without_read_out(tensors, path)
    parts = {backbone: dict[str, Tensor](), **({} if shared is None else {shared: dict[str, Tensor]()})}
    states = {part: part.state_dict() for part in parts}
    for name, tensor in tensors.items():
        home = shared if shared is not None and name in states[shared] else backbone
        parts[home][name] = tensor
    for part, found_here in parts.items():
        for name, tensor in states[part].items():
            # torchvision's older files have no count of batches, which nothing reads at a fixed momentum
            if name.endswith("num_batches_tracked"):
                found_here.setdefault(name, tensor)
        check_state(part, found_here, str(path))
    for part, found_here in parts.items():
        part.load_state_dict(found_here)
