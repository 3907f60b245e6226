"""What the network is shown in training: patches, each bit for bit a piece of the whole image's HR and condition."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.super_resolution.resize import cubic_upsample, imresize

MARGIN = 2
"""LR pixels beside a place that either bicubic kernel looks at."""


def mod_crop(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """The image (H, W[, C]) without the rows at its bottom and columns at its right that the scale does not divide."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def cut(
    hr: NDArray[np.uint8], lr: NDArray[np.uint8] | None, scale: int, top: int, left: int, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One patch of an image, and of its condition, which is LR upsampled by OpenCV's bicubic.

    Source: papers.md#bi-diffsr-diffusion.

    LR is made, and upsampled, with a margin that is cut off again: the patch equals that of the whole image's LR and
    condition, and costs what its own pixels do.

    Args:
        hr: uint8 (scale * h, scale * w, 3). lr: uint8 (h, w, 3), or None to make it with `imresize`.
        top, left, side: the square in LR pixels, within the image.

    Returns:
        uint8 and float32 in [0, 1] with overshoots, both (scale * side, scale * side, 3).
    """
    size = hr.shape[0] // scale, hr.shape[1] // scale
    wanted = slice(top, top + side), slice(left, left + side)
    near = _grown(wanted, size)
    if lr is None:
        wide = _grown(near, size)
        low = imresize(hr[_times(wide, scale)], 1 / scale)[_within(near, wide)]
    else:
        low = lr[near]
    return hr[_times(wanted, scale)], cubic_upsample(low, scale)[_times(_within(wanted, near), scale)]


Square = tuple[slice, slice]


def _grown(square: Square, size: tuple[int, int]) -> Square:
    rows, columns = (
        slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in zip(square, size, strict=True)
    )
    return rows, columns


def _within(inner: Square, outer: Square) -> Square:
    rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return rows, columns


def _times(square: Square, scale: int) -> Square:
    rows, columns = (slice(s.start * scale, s.stop * scale) for s in square)
    return rows, columns
