"""MeanVarianceCoder: eight values a box, BiDet's mean and log variance.

See papers.md#bidet, #bidet-ssd, #bidet-faster-rcnn.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.errors import InputError
from tasks.detection.mmdet.api import TASK_UTILS, BaseBBoxCoder, HorizontalBoxes, get_box_tensor

MOST = math.log(1000 / 16)
"""Largest decoded log of a size over its prior's size, mmdet's own limit."""


@TASK_UTILS.register_module()
class MeanVarianceCoder(BaseBBoxCoder):
    """Boxes (N, 4) against priors (N, 4), corners in pixels, as codes (N, 8): log variance (4), then mean (4).

    The mean is the usual (dx, dy, dw, dh): the centre's shift over the prior's size and the log of the sizes' ratio,
    less target_means, over target_stds. A box is drawn as mean + n * exp(log variance / 2) * sigma with n of N(0, 1).

    Args:
        target_means: of the four values.
        target_stds: of the four values.
        sigma: scale of the noise of `draw`; 0 leaves the mean.
        whole_pixels: boxes include their last pixel: x2 - x1 + 1 wide (tasks.detection.models.anchors).
        clip_border: keep decoded boxes inside max_shape.
        use_box_type: decode to mmdet's HorizontalBoxes.

    Raises:
        InputError: sigma below 0, or not four means and four positive stds.
    """

    encode_size = 8

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        sigma: float = 0.0,
        whole_pixels: bool = False,
        clip_border: bool = True,
        use_box_type: bool = False,
    ) -> None:
        super().__init__(use_box_type)
        if len(target_means) != 4 or len(target_stds) != 4 or min(target_stds) <= 0:
            raise InputError(
                f"target_means and target_stds of the box coder must be four numbers and four positive numbers, got "
                f"{tuple(target_means)} and {tuple(target_stds)}"
            )
        if sigma < 0:
            raise InputError(f"sigma of the box coder must be a number of at least 0, got {sigma}")
        self.means, self.stds = tuple(target_means), tuple(target_stds)
        self.sigma, self.last = sigma, 1.0 if whole_pixels else 0.0
        self.clip_border = clip_border

    def encode(self, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Codes (N, 8) of the boxes: zeros, because a log variance has no target, and the means."""
        (centre, size), (target, target_size) = (self._middle(get_box_tensor(b)) for b in (bboxes, gt_bboxes))
        deltas = torch.cat([(target - centre) / size, (target_size / size).log()], 1)
        mean = (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)
        return torch.cat([torch.zeros_like(mean), mean], 1)

    def mean(self, codes: Tensor) -> Tensor:
        """The last four (..., 4) of codes (..., 8)."""
        return codes[..., 4:]

    def loss_weights(self, weights: Tensor) -> Tensor:
        """Weights (..., 8) of a loss between codes, with 0 for the log variances, which have no target."""
        return torch.cat([torch.zeros_like(weights[..., :4]), weights[..., 4:]], -1)

    def draw(self, codes: Tensor) -> Tensor:
        """Codes (..., 8) with a draw in place of the mean; `codes` itself if sigma is 0. Gradients reach both parts."""
        if self.sigma == 0:
            return codes
        log_variance, mean = codes.split(4, -1)
        spread = (0.5 * log_variance).exp() * self.sigma
        # not randn_like, which draws in the order of memory: another order if the network runs channels last
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        return torch.cat([log_variance, mean + noise * spread], -1)

    def decode(
        self, bboxes: Tensor, pred_bboxes: Tensor, max_shape: Sequence[int] | None = None
    ) -> Tensor | HorizontalBoxes:
        """Boxes (N, 4) of the codes' means, the inverse of encode.

        Differs from the paper: with whole_pixels a box is at least a pixel wide, and it grows at most 62.5 times, so
        that no overflow reaches NMS.

        Args:
            bboxes: (N, 4) priors.
            pred_bboxes: (N, 8) codes.
            max_shape: (height, width) of the image.
        """
        centre, size = self._middle(get_box_tensor(bboxes))
        deltas = self.mean(pred_bboxes)
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        shift, growth = deltas.split(2, -1)
        centre = centre + shift * size
        half = 0.5 * ((size * growth.clamp(max=MOST).exp()).clamp(min=self.last) - self.last)
        boxes = torch.cat([centre - half, centre + half], -1)
        if max_shape is not None and self.clip_border:
            height, width = max_shape[:2]
            limit = boxes.new_tensor([width, height, width, height]) - self.last
            boxes = torch.minimum(boxes.clamp(min=0), limit)
        return HorizontalBoxes(boxes) if self.use_box_type else boxes

    def _middle(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (N, 2) and sizes (N, 2)."""
        low, high = boxes.split(2, -1)
        return 0.5 * (low + high), high - low + self.last


def at_least_float(x: Tensor) -> Tensor:
    """x, or float32 of a half-precision x, which has too few digits for boxes of hundreds of pixels."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
