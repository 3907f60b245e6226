"""Faster R-CNN over BiDet's ResNet-18: the backbone's options hold for the other binary parts too.

Source: papers.md#bidet-faster-rcnn, #es-bidet.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from esbnn_core.errors import InputError
from tasks.detection.mmdet.api import MODELS, FasterRCNN
from tasks.detection.models.resnet_c4 import ESBiDetResNet18

OPTIONS = {"tau": 1, "groups": 1, "variant": "bidet", "shortcuts": True}
"""What the parts have in common, and what a part is that does not take it."""
CHANNELS = 256
"""Nominal width of the map that the regions are cut out of."""


@MODELS.register_module()
class BiDetFasterRCNN(FasterRCNN):
    """mmdet's FasterRCNN whose rpn_head and roi_head.shared_head have tau, groups, variant and shortcuts from the
    backbone, an ESBiDetResNet18 or BiDetResNet18, and whose bbox_roi_extractor has its width.

    So `backbone.tau: 4` is all that an override needs. A part may state its own, if they are the backbone's.

    Args:
        backbone, rpn_head, roi_head: configs of mmdet. options: as mmdet's FasterRCNN, which refuses any other:
            train_cfg, test_cfg, neck, data_preprocessor, init_cfg.

    Raises:
        InputError: another backbone, or a part whose own option is not the backbone's (both named).
    """

    def __init__(self, backbone: Any, rpn_head: Any, roi_head: Any, **options: Any) -> None:
        kind = MODELS.get(backbone["type"])
        if not (inspect.isclass(kind) and issubclass(kind, ESBiDetResNet18)):
            raise InputError(
                f"BiDetFasterRCNN was given the backbone {backbone['type']}, ESBiDetResNet18 or BiDetResNet18 was "
                f"expected: name one of them, or take mmdet's FasterRCNN"
            )
        common = {key: _value(backbone, key) for key in OPTIONS}
        _agree(rpn_head, "rpn_head", {key: common[key] for key in ("tau", "groups", "variant")})
        _agree(roi_head["shared_head"], "roi_head.shared_head", common)
        width = common["tau"] * common["groups"] * CHANNELS
        _agree(roi_head["bbox_roi_extractor"], "roi_head.bbox_roi_extractor", {"out_channels": width})
        super().__init__(backbone=backbone, rpn_head=rpn_head, roi_head=roi_head, **options)


def _taken(part: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    kind = MODELS.get(part["type"])
    if kind is None:
        raise InputError(f"{part['type']} is in no registry of mmdet: check the name")
    return inspect.signature(kind).parameters


def _value(part: Mapping[str, Any], key: str) -> Any:
    """The option as the part has it: given, its default, or that of a part which does not take it."""
    taken = _taken(part)
    return part.get(key, taken[key].default if key in taken else OPTIONS[key])


def _agree(part: Any, place: str, common: Mapping[str, Any]) -> None:
    """Set what the part leaves open; raises InputError where it has something else."""
    taken = _taken(part)
    for key, want in common.items():
        if key in taken:
            part.setdefault(key, want)
        got = part.get(key, OPTIONS.get(key))
        if got != want:
            raise InputError(
                f"{place} has {key}={got}, the backbone asks for {want}: leave {place}.{key} out, it follows the "
                f"backbone"
                if key in taken
                else f"{place} is a {part['type']} without {key}, the backbone has {key}={want}: name its expanded form"
            )
