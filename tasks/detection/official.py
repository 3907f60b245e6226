"""Names of the tensors in BiDet's released SSD300 file, for load_official and to_official.

Importing this file declares them; esbnn_core itself knows only the trunks. Here are only names and shapes, none of the
original's code.
"""

import re
from collections.abc import Collection

from torch import nn

from esbnn_core.checkpoint.official_keys import KEY_MAPS, KeyMap, declare
from tasks.detection.models.ssd_head import BiDetSSDHead
from tasks.detection.models.ssd_vgg import ESBiDetVGG16


def _is_ssd(model: nn.Module) -> bool:
    backbone, head = getattr(model, "backbone", None), getattr(model, "bbox_head", None)
    return isinstance(backbone, ESBiDetVGG16) and isinstance(head, BiDetSSDHead)


def _extras(name: str, key: str, keys: Collection[str]) -> str:
    """backbone.extras.1.0.norm.bias -> extra_bns.2.bias: the original counts convolutions, we count pairs of them."""
    match = re.match(r"^backbone\.extras\.(\d)\.(\d)\.(conv|norm)\.(.*)$", key)
    if not match:
        return name
    pair, place, part, rest = match.groups()
    return f"{'extras' if part == 'conv' else 'extra_bns'}.{2 * int(pair) + int(place)}.{rest}"


SSD300 = KeyMap(
    fits=_is_ssd,
    rules=(
        (r"^backbone\.norm\.", "L2Norm."),
        (r"^bbox_head\.cls_convs\.", "conf."),
        (r"^bbox_head\.reg_convs\.", "loc."),
        (r"^backbone\.trunk\.", ""),
        *KEY_MAPS["bidet_vgg16"].rules,
    ),
    looks=(("extra_bns.", "BiDet's SSD300 (configs/detection/bidet_ssd300.yaml)"),),
    fix=_extras,
    own=r"^bbox_head\.bottleneck\.",
)
declare("bidet_ssd300", SSD300)
