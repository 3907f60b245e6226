"""Training patches, each bit for bit a piece of the whole image's HR and condition."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.super_resolution.resize import cubic_upsample, imresize

MARGIN = 2
"""LR pixels on each side of a position that either bicubic kernel reads."""


def crop_to_multiple(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """The image (H, W[, C]), cropped at its bottom and right to multiples of the scale."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def cut_patch(
    hr: NDArray[np.uint8], lr: NDArray[np.uint8] | None, scale: int, top: int, left: int, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One patch of an image, and of its condition: LR upsampled by OpenCV's bicubic (papers.md#bi-diffsr-diffusion).

    LR is made and upsampled with a margin, which is cut off again. So the patch equals that of the whole image's
    condition, at the cost of its own pixels.

    Args:
        hr: uint8 (scale * h, scale * w, 3).
        lr: uint8 (h, w, 3), or None to make it with `imresize`.
        scale: the HR side over the LR side.
        top: of the square in LR pixels.
        left: of the square in LR pixels.
        side: of the square in LR pixels; it is within the image.

    Returns:
        uint8 and float32 in [0, 1] with overshoots, both (scale * side, scale * side, 3).
    """
    size = hr.shape[0] // scale, hr.shape[1] // scale
    inner = slice(top, top + side), slice(left, left + side)
    near = _grow(inner, size)
    if lr is None:
        wide = _grow(near, size)
        low = imresize(hr[_multiply(wide, scale)], 1 / scale)[_within(near, wide)]
    else:
        low = lr[near]
    return hr[_multiply(inner, scale)], cubic_upsample(low, scale)[_multiply(_within(inner, near), scale)]


Square = tuple[slice, slice]


def _grow(square: Square, size: tuple[int, int]) -> Square:
    rows, columns = (
        slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in zip(square, size, strict=True)
    )
    return rows, columns


def _within(inner: Square, outer: Square) -> Square:
    rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return rows, columns


def _multiply(square: Square, scale: int) -> Square:
    rows, columns = (slice(s.start * scale, s.stop * scale) for s in square)
    return rows, columns
