"""The priors of SSD300: boxes of every cell of six maps, no larger than the image (papers.md#bidet-ssd)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.errors import InputError
from tasks.detection.mmdet.api import TASK_UTILS, AnchorGenerator

STRIDES = (8, 16, 32, 64, 100, 300)
MIN_SIZES = (30, 60, 111, 162, 213, 264)
MAX_SIZES = (60, 111, 162, 213, 264, 315)
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))


@TASK_UTILS.register_module()
class SSDPriors(AnchorGenerator):
    """Boxes (x1, y1, x2, y2) in pixels, by cell: a small square, a larger one, and two boxes for each ratio.

    The original limits sizes and centres to the image; mmdet's SSDAnchorGenerator does not, and the last cells of its
    10x10 map have their centres outside. Corners may be outside here too. All is float64 up to the dtype of
    grid_priors.

    Args:
        strides: pixels between the cells of each map.
        min_sizes: side of the small square of each map.
        max_sizes: the larger square has the side sqrt(min * max).
        ratios: of the sides of the other boxes.
        image_size: the longest side and the farthest centre.

    Raises:
        InputError: numbers of entries that differ.
    """

    def __init__(
        self,
        strides: Sequence[int] = STRIDES,
        min_sizes: Sequence[float] = MIN_SIZES,
        max_sizes: Sequence[float] = MAX_SIZES,
        ratios: Sequence[Sequence[float]] = RATIOS,
        image_size: int = 300,
    ) -> None:
        lengths = [len(each) for each in (strides, min_sizes, max_sizes, ratios)]
        if len(set(lengths)) != 1:
            raise InputError(
                f"strides, min_sizes, max_sizes and ratios must have one entry a map, got {lengths} entries"
            )
        self.strides = [(stride, stride) for stride in strides]
        self.image_size = image_size
        self.use_box_type = False
        self.base_anchors = [
            self._cell(stride, low, high, sides)
            for stride, low, high, sides in zip(strides, min_sizes, max_sizes, ratios, strict=True)
        ]

    def _cell(self, stride: int, low: float, high: float, ratios: Sequence[float]) -> Tensor:
        """(2 + 2 * ratios, 4) float64: the boxes of the first cell."""
        sides = [(low, low), (math.sqrt(low * high),) * 2]
        for ratio in ratios:
            root = math.sqrt(ratio)
            sides += [(low * root, low / root), (low / root, low * root)]
        half = torch.tensor(sides, dtype=torch.float64).clamp(max=self.image_size) / 2
        return torch.cat([stride / 2 - half, stride / 2 + half], 1)

    def single_level_grid_priors(
        self,
        featmap_size: tuple[int, int],
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cuda",
    ) -> Tensor:
        """Priors (h * w * priors, 4) of one map (h, w), row by row, those of a cell next to each other."""
        boxes = super().single_level_grid_priors(featmap_size, level_idx, dtype=torch.float64, device=device)
        low, high = boxes.split(2, 1)
        over = ((low + high) / 2 - self.image_size).clamp(min=0)
        return torch.cat([low - over, high - over], 1).to(dtype)

    def __repr__(self) -> str:
        return f"SSDPriors(strides={[s for s, _ in self.strides]}, priors={self.num_base_priors})"
