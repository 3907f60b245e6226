"""What a detector starts from: a backbone of this project, of the originals, or of torchvision and mmdet."""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from esbnn_core import create_model, load_checkpoint
from esbnn_core.checkpoint import check_state, load_state, read_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.foreign import CONTAINERS, load_official, unwrap
from esbnn_core.models.bidet_resnet import BiDetResNet
from tasks.detection.backbones import ESBiDetVGG16
from tasks.detection.resnet_c4 import ESBiDetResNet18, load_trunk_

READ_OUTS = ("fc.", "head.", "classifier.")
"""What a classifier has behind its trunk, which a detector leaves behind; nothing else may be left."""


def load_backbone_(detector: nn.Module, path: str | Path) -> nn.Module:
    """Load the file of a trained backbone into a detector, all or nothing; returns the detector.

    Args:
        path: a .safetensors file of this project, or a file of the originals; for a detector of mmdet's own layers a
            .pth of plain tensors under the backbone's own names, with or without a read-out.

    Raises:
        InputError: a missing or unreadable file, or one that does not fit, by the names of its tensors.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise InputError(f"the detector {type(detector).__name__} has no backbone to load {path} into")
    ours = Path(path).suffix == ".safetensors"
    if isinstance(backbone, ESBiDetVGG16):
        if ours:
            load_state(backbone.trunk, read_checkpoint(path).tensors, str(path))
        else:
            load_official(backbone.trunk, path)
    elif isinstance(backbone, ESBiDetResNet18):
        trunk = load_checkpoint(path) if ours else create_model("bidet_resnet18", num_classes=1000)
        if not ours:
            load_official(trunk, path)
        if not isinstance(trunk, BiDetResNet):
            raise InputError(f"{path} holds a {type(trunk).__name__}, BiDet's ResNet-18 was expected: give its file")
        load_trunk_(detector, trunk)
    else:
        shared = getattr(getattr(detector, "roi_head", None), "shared_head", None)
        _load_plain_(backbone, shared, path)
    return detector


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
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(READ_OUTS)}
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
