"""MeanVarianceCoder: eight values for a box, BiDet's mean and log variance.

Source: papers.md#bidet, #bidet-ssd, #bidet-faster-rcnn.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.errors import InputError
from tasks.detection.mmdet.api import TASK_UTILS, BaseBBoxCoder, HorizontalBoxes, get_box_tensor

MOST = math.log(1000 / 16)
"""Largest log of a size over its prior's that is decoded, mmdet's own limit."""


@TASK_UTILS.register_module()
class MeanVarianceCoder(BaseBBoxCoder):
    """Boxes (N, 4) against priors (N, 4), corners in pixels, as codes (N, 8): log variance (4), then mean (4).

    The mean is the usual (dx, dy, dw, dh): the centre's shift over the prior's size and the log of the sizes' ratio,
    less target_means and over target_stds. A box is drawn as mean + n * exp(log variance / 2) * sigma, n of N(0, 1).

    Args:
        target_means, target_stds: of the four. sigma: width of what `drawn` draws; 0 leaves the mean.
        whole_pixels: boxes hold their last pixel, so that they are x2 - x1 + 1 wide (tasks.detection.models.anchors).
        clip_border: keep decoded boxes inside max_shape. use_box_type: decode to mmdet's HorizontalBoxes.

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
                f"target_means={tuple(target_means)} and target_stds={tuple(target_stds)} were given for the box coder,"
                f" four numbers and four positive numbers were expected"
            )
        if sigma < 0:
            raise InputError(f"sigma={sigma} was given for the box coder, a number of at least 0 was expected")
        self.means, self.stds = tuple(target_means), tuple(target_stds)
        self.sigma, self.last = sigma, 1.0 if whole_pixels else 0.0
        self.clip_border = clip_border

    def encode(self, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Codes (N, 8) of the boxes: zeros, for a log variance has no target, and the means."""
        (centre, size), (wanted, wanted_size) = (self._middle(get_box_tensor(b)) for b in (bboxes, gt_bboxes))
        deltas = torch.cat([(wanted - centre) / size, (wanted_size / size).log()], 1)
        mean = (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)
        return torch.cat([torch.zeros_like(mean), mean], 1)

    def mean(self, codes: Tensor) -> Tensor:
        """The last four (..., 4) of codes (..., 8)."""
        return codes[..., 4:]

    def loss_weights(self, weights: Tensor) -> Tensor:
        """Weights (..., 8) of a loss between codes, with 0 for the log variances, which have no target."""
        return torch.cat([torch.zeros_like(weights[..., :4]), weights[..., 4:]], -1)

    def drawn(self, codes: Tensor) -> Tensor:
        """Codes (..., 8) whose mean is replaced by a draw; `codes` itself where sigma is 0. Gradients reach both."""
        if self.sigma == 0:
            return codes
        log_variance, mean = codes.split(4, -1)
        spread = (0.5 * log_variance).exp() * self.sigma
        # not randn_like: it draws in the order of memory, which is another one where the network runs channels last
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
        return torch.cat([log_variance, mean + noise * spread], -1)

    def decode(
        self, bboxes: Tensor, pred_bboxes: Tensor, max_shape: Sequence[int] | None = None
    ) -> Tensor | HorizontalBoxes:
        """Boxes (N, 4) of the codes' means, the inverse of encode. max_shape: (height, width) of the image.

        Differs from the paper: a box is never narrower than a pixel where whole_pixels, and grows no more than 62.5
        times, so that no overflow reaches the suppression.
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
    """x, or float32 of a half-precision x: boxes of hundreds of pixels need more digits than those have."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
