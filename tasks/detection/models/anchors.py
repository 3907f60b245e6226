"""Boxes of whole pixels as in Faster R-CNN's first code: anchors, and overlaps of two sets.

Such a box (x1, y1, x2, y2) includes its last pixel, so it is x2 - x1 + 1 wide. mmdet's annotations of PASCAL VOC are
boxes of this kind (the numbers of the file, less 1). See papers.md#bidet-faster-rcnn, #es-bidet.
"""

from typing import Any

import torch
from torch import Tensor

from tasks.detection.mmdet.api import TASK_UTILS, AnchorGenerator


@TASK_UTILS.register_module()
class PixelAnchors(AnchorGenerator):
    """mmdet's anchor generator for boxes of whole pixels, with sides rounded before they are scaled.

    A base of side `base_sizes[0]` has the corners (o, o) and (o + side - 1, o + side - 1); for a ratio r of height to
    width it becomes round(sqrt(side^2 / r)) wide and round(r * width) high about the same centre, and that is scaled.
    Base 16 with ratios 0.5, 1, 2 and scales 8, 16, 32 gives nine, [-83, -39, 100, 56] to [-167, -343, 184, 360].

    Args:
        first_pixel: the coordinate o of the first pixel. 1 gives the anchors above, 0 moves them one pixel up and left.
        options: of mmdet's AnchorGenerator, which refuses any other: strides, ratios, scales, base_sizes.
    """

    def __init__(self, first_pixel: int = 1, **options: Any) -> None:
        self.first_pixel = first_pixel
        super().__init__(**options)

    def gen_single_level_base_anchors(
        self, base_size: float, scales: Tensor, ratios: Tensor, center: tuple[float, float] | None = None
    ) -> Tensor:
        """Anchors (ratios * scales, 4), the ratio changing slowest; the default `center` is that of the base."""
        middle = self.first_pixel + 0.5 * (base_size - 1)
        x, y = center or (middle, middle)
        wide = torch.round(torch.sqrt(base_size**2 / ratios))
        high = torch.round(wide * ratios)
        half_wide = 0.5 * (wide[:, None] * scales - 1).flatten()
        half_high = 0.5 * (high[:, None] * scales - 1).flatten()
        return torch.stack([x - half_wide, y - half_high, x + half_wide, y + half_high], 1)


@TASK_UTILS.register_module()
class PixelOverlaps:
    """Intersection over union of boxes of whole pixels, for mmdet's assigners: (M, 4) and (N, 4) -> (M, N)."""

    def __call__(self, boxes: Tensor, others: Tensor, mode: str = "iou", is_aligned: bool = False) -> Tensor:
        """Overlaps of two sets of boxes.

        Args:
            boxes: (M, 4).
            others: (N, 4).
            mode: "iou", or "iof", the intersection over the first box.
            is_aligned: pair by pair, (N, 4) and (N, 4) -> (N,).

        Raises:
            ValueError: another mode.
        """
        if mode not in ("iou", "iof"):
            raise ValueError(f"mode must be one of iou, iof, got {mode!r}")
        if not is_aligned:
            boxes, others = boxes[:, None], others[None]
        low = torch.maximum(boxes[..., :2], others[..., :2])
        high = torch.minimum(boxes[..., 2:4], others[..., 2:4])
        shared = (high - low + 1).clamp(min=0).prod(-1)
        area = (boxes[..., 2:4] - boxes[..., :2] + 1).prod(-1)
        if mode == "iof":
            return shared / area
        return shared / (area + (others[..., 2:4] - others[..., :2] + 1).prod(-1) - shared)
