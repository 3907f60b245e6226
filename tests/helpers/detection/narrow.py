"""BiDet's trunks with a quarter of their widths: the same code and layers for a sixteenth of the operations."""

from dataclasses import replace
from typing import Any

import pytest

from esbnn_core.models import bidet_resnet, resnet, vgg
from tasks.detection.models import faster_rcnn, ssd_vgg

FACTOR = 4
WIDTHS = resnet.R18.widths


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Divide every nominal width of ResNet-18, VGG-16 and SSD300's extras until the patch is undone."""
    layout = replace(resnet.R18, widths=tuple(width // FACTOR for width in WIDTHS))
    patch.setattr(bidet_resnet, "R18", layout)
    patch.setattr(faster_rcnn, "CHANNELS", layout.widths[2])
    patch.setattr(vgg, "WIDTHS", tuple(width // FACTOR for width in vgg.WIDTHS))
    patch.setattr(vgg, "LAST", vgg.LAST // FACTOR)
    patch.setattr(ssd_vgg, "SOURCES", tuple(width // FACTOR for width in ssd_vgg.SOURCES))
    extras = [(low // FACTOR, high // FACTOR, *rest) for low, high, *rest in ssd_vgg.EXTRAS]
    patch.setattr(ssd_vgg, "EXTRAS", tuple(extras))


def head_widths(ssd: bool = False) -> dict[str, Any]:
    """What the heads of a Faster R-CNN, or of tiny_bidet_ssd, take as widths, by place; nothing at the usual widths."""
    *_, third, fourth = bidet_resnet.R18.widths
    if bidet_resnet.R18.widths == WIDTHS:
        return {}
    if ssd:
        return {"bbox_head.in_channels": (2 * third,)}
    region = {"roi_head.bbox_head.in_channels": fourth}
    return {"rpn_head.in_channels": third, "rpn_head.feat_channels": fourth, **region}
