"""Faster R-CNN over BiDet's ResNet-18, whose options set the other binary parts too.

See papers.md#bidet-faster-rcnn, #es-bidet.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from esbnn_core.errors import InputError
from tasks.detection.mmdet.api import MODELS, FasterRCNN
from tasks.detection.models.resnet_c4 import ESBiDetResNet18

OPTIONS = {"tau": 1, "groups": 1, "variant": "bidet", "shortcuts": True}
"""Options that the parts share, and the value of a part that does not take one."""
CHANNELS = 256
"""Nominal width of the map that the regions are taken from."""


@MODELS.register_module()
class BiDetFasterRCNN(FasterRCNN):
    """mmdet's FasterRCNN with the tau, groups, variant and shortcuts of the backbone in its other binary parts.

    The backbone is an ESBiDetResNet18 or BiDetResNet18. rpn_head and roi_head.shared_head take its options and
    bbox_roi_extractor its width, so an override needs `backbone.tau: 4` only. A part may repeat the backbone's options.

    Args:
        backbone: config of mmdet.
        rpn_head: config of mmdet.
        roi_head: config of mmdet.
        options: of mmdet's FasterRCNN, which refuses any other: train_cfg, test_cfg, neck, data_preprocessor, init_cfg.

    Raises:
        InputError: another backbone, or a part whose option is not the backbone's (both named).
    """

    def __init__(self, backbone: Any, rpn_head: Any, roi_head: Any, **options: Any) -> None:
        kind = MODELS.get(backbone["type"])
        if not (inspect.isclass(kind) and issubclass(kind, ESBiDetResNet18)):
            raise InputError(
                f"the backbone of BiDetFasterRCNN must be ESBiDetResNet18 or BiDetResNet18, got {backbone['type']}: "
                f"name one of them, or take mmdet's FasterRCNN"
            )
        common = {key: _read_option(backbone, key) for key in OPTIONS}
        _set_options(rpn_head, "rpn_head", {key: common[key] for key in ("tau", "groups", "variant")})
        _set_options(roi_head["shared_head"], "roi_head.shared_head", common)
        width = common["tau"] * common["groups"] * CHANNELS
        _set_options(roi_head["bbox_roi_extractor"], "roi_head.bbox_roi_extractor", {"out_channels": width})
        super().__init__(backbone=backbone, rpn_head=rpn_head, roi_head=roi_head, **options)


def _parameters_of(part: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    kind = MODELS.get(part["type"])
    if kind is None:
        raise InputError(f"{part['type']} is not in a registry of mmdet: check the name")
    return inspect.signature(kind).parameters


def _read_option(part: Mapping[str, Any], key: str) -> Any:
    """The option of a part: as given, its default, or that of OPTIONS if the part does not take it."""
    parameters = _parameters_of(part)
    return part.get(key, parameters[key].default if key in parameters else OPTIONS[key])


def _set_options(part: Any, place: str, common: Mapping[str, Any]) -> None:
    """Set the options that the part leaves open; raises InputError if it has another value."""
    parameters = _parameters_of(part)
    for key, want in common.items():
        if key in parameters:
            part.setdefault(key, want)
        got = part.get(key, OPTIONS.get(key))
        if got != want:
            raise InputError(
                f"{place}.{key} must be the backbone's {want}, got {got}: leave it out, it follows the backbone"
                if key in parameters
                else f"{place} must take the backbone's {key}={want}, got a {part['type']} without {key}: name its "
                f"expanded form"
            )
