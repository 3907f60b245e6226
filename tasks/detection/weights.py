"""Loads the backbone that a detector starts from: of this project, the originals, torchvision or mmdet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from esbnn_core import create_model, load_checkpoint, model_spec
from esbnn_core.checkpoint.format import check_state, load_state
from esbnn_core.checkpoint.official import CONTAINERS, load_official, unwrap
from esbnn_core.checkpoint.torch_file import load_torch_file
from esbnn_core.errors import InputError
from esbnn_core.lit.precision import widen_
from esbnn_core.models import BiDetResNet, BiDetVGG16, BinaryResNet
from tasks.detection.models.resnet_c4 import ESBiDetResNet18, load_trunk_
from tasks.detection.models.ssd_vgg import ESBiDetVGG16

READ_OUTS = ("fc.", "head.", "classifier.")
"""Layers of a classifier after its trunk, which a detector does not load; nothing else may be left over."""
BIREAL = ("bireal_resnet18", "es_bireal_resnet18")
"""Classifiers with the computation and the names of BiDet's ResNet-18 of variant bireal."""


def load_backbone_(detector: nn.Module, path: str | Path) -> nn.Module:
    """Load the file of a trained backbone into a detector, all or nothing; returns the detector.

    Args:
        detector: with a backbone.
        path: a .safetensors file of this project (a trunk or its classifier; for variant bireal of the ResNet also a
            bireal_resnet18), or a file of the originals. For a detector of mmdet's own layers a .pth of plain tensors
            under the backbone's names, with or without a read-out. Layers that are not loaded are printed. A detector
            becomes float64 for a file of ours in float64.

    Raises:
        InputError: a missing or unreadable file, one of another network, variant or shortcuts, or one whose tensors do
            not fit (named).
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise InputError(f"the detector {type(detector).__name__} has no backbone to load {path} into")
    ours = Path(path).suffix == ".safetensors"
    if isinstance(backbone, ESBiDetVGG16):
        if ours:
            options = _options_of(backbone.trunk)
            source = _load_source(path, "VGG-16", options["variant"], options["shortcuts"])
            widen_(detector, source.state_dict())
            load_state(backbone.trunk, _drop_read_out(source.state_dict(), path), str(path))
        else:
            load_official(backbone.trunk, path)
    elif isinstance(backbone, ESBiDetResNet18):
        trunk: Any
        if ours:
            trunk = _load_source(path, "ResNet-18", backbone.variant, backbone.shortcuts)
            widen_(detector, trunk.state_dict())
        else:
            trunk = create_model("bidet_resnet18", num_classes=1000)
            load_official(trunk, path)
        load_trunk_(detector, trunk)
        _drop_read_out(trunk.state_dict(), path)
    else:
        shared = getattr(getattr(detector, "roi_head", None), "shared_head", None)
        _load_plain_(backbone, shared, path)
    return detector


def _options_of(model: nn.Module) -> Mapping[str, Any]:
    spec = model_spec(model)
    return {} if spec is None else spec.options


def _load_source(path: str | Path, kind: Literal["VGG-16", "ResNet-18"], variant: str, shortcuts: bool) -> nn.Module:
    """The network of a file of this project, checked by its options, because tensors alone do not show the variant."""
    model, options = load_checkpoint(path), {}
    spec = model_spec(model)
    if isinstance(model, BinaryResNet) and spec is not None and spec.name in BIREAL and kind == "ResNet-18":
        options = {"variant": "bireal", "shortcuts": True}
    elif isinstance(model, BiDetVGG16 if kind == "VGG-16" else BiDetResNet):
        options = dict(_options_of(model))
    if not options:
        name = spec.name if spec else type(model).__name__
        raise InputError(f"{path} must be of BiDet's {kind}, got a {name}: give its file")
    if (options["variant"], options["shortcuts"]) != (variant, shortcuts):
        raise InputError(
            f"{path} must have the backbone's variant {variant} and shortcuts {shortcuts}, got {options['variant']} "
            f"and {options['shortcuts']}: give a file of the same, or set them by model.overrides"
        )
    return model


def _drop_read_out(tensors: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The tensors except those of READ_OUTS, whose names are printed."""
    left = [name for name in tensors if name.startswith(READ_OUTS)]
    if left:
        rank_zero_info(f"{path}: the read-out ({', '.join(left)}) is not loaded, everything else is")
    return {name: tensor for name, tensor in tensors.items() if name not in left}


def _load_plain_(backbone: nn.Module, shared: nn.Module | None, path: str | Path) -> None:
    """Load plain tensors into a backbone of mmdet: every tensor of it, with only a read-out left over.

    Args:
        backbone: to fill.
        shared: the last stage of the network, if a detector runs it on its regions; the file contains it too.
        path: of the file.
    """
    if not Path(path).is_file():
        raise InputError(f"backbone file {path} does not exist: place it there or change model.backbone")
    found = load_torch_file(path, "backbone file", "fetch it again")
    tensors = unwrap(found, CONTAINERS)
    if tensors is None:
        raise InputError(
            f"backbone file {path} must be a mapping of tensors, bare or under one of {', '.join(CONTAINERS)}"
        )
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    tensors = _drop_read_out(tensors, path)
    parts = {backbone: dict[str, Tensor](), **({} if shared is None else {shared: dict[str, Tensor]()})}
    states = {part: part.state_dict() for part in parts}
    for name, tensor in tensors.items():
        part = shared if shared is not None and name in states[shared] else backbone
        parts[part][name] = tensor
    for part, part_tensors in parts.items():
        for name, tensor in states[part].items():
            # older files of torchvision lack the count of batches, which is unused at a fixed momentum
            if name.endswith("num_batches_tracked"):
                part_tensors.setdefault(name, tensor)
        check_state(part, part_tensors, str(path))
    for part, part_tensors in parts.items():
        part.load_state_dict(part_tensors)
