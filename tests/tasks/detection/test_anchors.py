"""Boxes of whole pixels: the nine anchors of Faster R-CNN, their grid, and overlaps counted pixel by pixel."""

import pytest
import torch
from torch import Tensor

from tasks.detection.mmdet.api import TASK_UTILS, scope
from tasks.detection.models.anchors import PixelAnchors, PixelOverlaps

NINE = [
    *([-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200]),
    *([-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264]),
    *([-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360]),
]
CONFIG = {"type": "PixelAnchors", "strides": [16], "base_sizes": [16], "ratios": [0.5, 1, 2], "scales": [8, 16, 32]}


def made(**changes: object) -> PixelAnchors:
    with scope():
        return TASK_UTILS.build({**CONFIG, **changes})


def test_the_nine_anchors_in_their_order() -> None:
    (base,) = made().base_anchors
    assert base.tolist() == NINE
    (shifted,) = made(first_pixel=0).base_anchors
    assert (base - shifted == 1).all()


def test_four_scales_as_for_coco() -> None:
    (base,) = made(scales=[4, 8, 16, 32]).base_anchors
    assert base[[i for i in range(12) if i % 4]].tolist() == NINE
    # 23x12, 16x16 and 11x22 pixels, four times as large
    sides = base[::4, 2:] - base[::4, :2] + 1
    assert sides.tolist() == [[92, 48], [64, 64], [44, 88]]


@pytest.mark.parametrize(("height", "width"), [(2, 3), (1, 4)])
def test_the_grid_goes_row_by_row(height: int, width: int) -> None:
    (anchors,) = made().grid_priors([(height, width)], device="cpu")
    want = [
        [x1 + 16 * x, y1 + 16 * y, x2 + 16 * x, y2 + 16 * y]
        for y in range(height)
        for x in range(width)
        for x1, y1, x2, y2 in NINE
    ]
    assert anchors.tolist() == want


def pixels(box: Tensor) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = (int(v) for v in box)
    return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}


def random_boxes(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 9, (number, 2), generator=generator)
    return torch.cat([low, low + torch.randint(0, 7, (number, 2), generator=generator)], 1).float()


def test_overlaps_are_those_of_the_sets_of_pixels() -> None:
    boxes, others = random_boxes(7, 0), random_boxes(11, 1)
    found = PixelOverlaps()(boxes, others)
    within = PixelOverlaps()(boxes, others, mode="iof")
    assert found.shape == (7, 11) and (found > 0).sum() > 10 and (found == 0).sum() > 10
    for i, box in enumerate(map(pixels, boxes)):
        for j, other in enumerate(map(pixels, others)):
            assert found[i, j].item() == pytest.approx(len(box & other) / len(box | other))
            assert within[i, j].item() == pytest.approx(len(box & other) / len(box))
    pairs = PixelOverlaps()(boxes, others[:7], is_aligned=True)
    assert torch.equal(pairs, found[:, :7].diagonal())


def test_overlaps_of_nothing_and_of_an_unknown_kind() -> None:
    assert PixelOverlaps()(torch.zeros(0, 4), random_boxes(3, 0)).shape == (0, 3)
    with pytest.raises(ValueError, match="mode must be one of iou, iof, got 'giou'"):
        PixelOverlaps()(random_boxes(1, 0), random_boxes(1, 1), mode="giou")
