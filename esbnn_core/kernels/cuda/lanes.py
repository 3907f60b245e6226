"""The packed weight in the order of the CUDA kernels (conv.cuh): panels of 256 bits, then corner sums of its 1-bits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.kernels.reference import popcount_

PANEL = 8
"""int32 words of a panel: the depth of one 1-bit matrix instruction."""


def padded(filters: int) -> int:
    """Filters of a group, with those that fill its last tile."""
    return -(-filters // 32) * 32


def rows_of(weight: Tensor, groups: int) -> tuple[int, int]:
    """Rows of 8 words that the panels and the corners take."""
    filters, kernel_h, kernel_w, words = weight.shape
    wide = groups * padded(filters // groups)
    return wide * -(-kernel_h * kernel_w * words // PANEL), (kernel_h + 1) * (kernel_w + 1) * wide // 8


def make_lanes(weight: Tensor, groups: int) -> Tensor:
    """(O, KH, KW, words) or (O, words) int32 -> (rows, 8) int32, on any device; another shape than the CPU's (n,).

    First (groups, panels, filters of a group padded to 32, 8): word k of a filter is word k % words of tap k // words.
    Then (KH+1, KW+1, padded filters of all groups): 1-bits of a filter in all taps above and left of a corner, from
    which four corners give those of any window.
    """
    if weight.dim() == 2:
        weight = weight[:, None, None]
    filters, kernel_h, kernel_w, words = weight.shape
    per_group, depth = filters // groups, kernel_h * kernel_w * words
    missing = padded(per_group) - per_group
    more = (0, -depth % PANEL, 0, missing)
    panels = F.pad(weight.reshape(groups, per_group, depth), more).unflatten(2, (-1, PANEL)).transpose(1, 2)
    ones = popcount_(weight.clone()).sum(-1, dtype=torch.int32).view(groups, per_group, kernel_h, kernel_w)
    corners = F.pad(ones, (1, 0, 1, 0, 0, missing)).cumsum(-1).cumsum(-2).int().permute(2, 3, 0, 1)
    return torch.cat([panels.reshape(-1, 8), corners.reshape(-1, 8)])


def fits(lanes: Tensor | None, weight: Tensor, groups: int) -> bool:
    """Whether `lanes` was made for this weight's shape and this implementation, and not, say, on the CPU."""
    return (
        lanes is not None
        and lanes.device == weight.device
        and lanes.shape == (sum(rows_of(weight, groups)), 8)
        and lanes.is_contiguous()
        and lanes.data_ptr() % 16 == 0
    )
