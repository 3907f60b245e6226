"""Two bicubic kernels: MATLAB's makes the low resolution, OpenCV's makes the network's condition from it.

MATLAB's `imresize` has a = -0.5, widens the kernel when it shrinks an image (antialiasing) and rounds an 8-bit image
after each of its two passes. OpenCV's INTER_CUBIC has a = -0.75, never antialiases, and is used here on float images.
Both sample at pixel centres and repeat the edge. Only slices and gathers are used: no OpenCV is needed.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esbnn_core.errors import InputError

Image = NDArray[Any]
"""(H, W) or (H, W, C): uint8, or floating point with white at 1."""


def imresize(image: Image, scale: float) -> Image:
    """MATLAB's `imresize(image, scale, "bicubic")`: equal in every pixel to the benchmarks' LR_bicubic.

    Args:
        image: (H, W) or (H, W, C), uint8 or floating point.
        scale: 1/2 halves the sides, which are rounded up.

    Returns:
        (ceil(H * scale), ceil(W * scale)[, C]): uint8, rounded half up after each pass as in MATLAB, or float64.

    The edge is repeated, as in the MATLAB version that made the benchmarks. Newer versions mirror it, which changes
    only the two outermost pixels.

    Raises:
        InputError: an image of another form, or a scale that is not positive.
    """
    whole = _is_whole(image)
    if not scale > 0:
        raise InputError(f"scale must be a positive number, e.g. 0.5 for half the side, got {scale}")
    x: Image = image.astype(np.float64)
    # rows first: MATLAB begins with the dimension of the smaller scale, or the first of equal ones
    for axis in (0, 1):
        indices, weights = _contributions(x.shape[axis], math.ceil(x.shape[axis] * scale), scale)
        shape = [1] * x.ndim
        shape[axis] = -1
        y = np.zeros([])
        for tap in range(weights.shape[1]):
            y = y + weights[:, tap].reshape(shape) * x.take(indices[:, tap], axis)
        x = np.clip(np.floor(y + 0.5), 0, 255) if whole else y
    return x.astype(np.uint8) if whole else x


def cubic_upsample(image: Image, scale: int) -> NDArray[np.float32]:
    """OpenCV's `resize(..., INTER_CUBIC)` of a float32 image in [0, 1], not clipped (papers.md#bi-diffsr-diffusion).

    Args:
        image: (h, w) or (h, w, C), uint8, which is divided by 255, or floating point.
        scale: a whole number.

    Returns:
        float32 (scale * h, scale * w[, C]). It overshoots [0, 1] at sharp edges.

    Raises:
        InputError: an image of another form, or a scale that is not a whole number of at least 1.
    """
    whole = _is_whole(image)
    if scale != int(scale) or scale < 1:
        raise InputError(f"scale must be a whole number of at least 1, got {scale}")
    scale = int(scale)
    x: NDArray[np.float32] = image.astype(np.float32) / np.float32(255 if whole else 1)
    for axis in (1, 0):  # OpenCV's order
        size = x.shape[axis]
        padded = x.take(np.clip(np.arange(-2, size + 3), 0, size - 1), axis)
        # output scale * i + phase is at input i + shift + t: every phase has its four weights
        phases = []
        for phase in range(scale):
            at = (phase + 0.5) / scale - 0.5
            shift = math.floor(at)
            taps = _cubic(np.arange(-1, 3) - (at - shift), -0.75).astype(np.float32)
            start = 2 + shift - 1
            parts = [np.take(padded, range(start + k, start + k + size), axis) * taps[k] for k in range(4)]
            phases.append(parts[0] + parts[1] + parts[2] + parts[3])
        shape = (*x.shape[:axis], scale * size, *x.shape[axis + 1 :])
        x = np.stack(phases, axis + 1).reshape(shape)
    return x


def _is_whole(image: Image) -> bool:
    """Whether the image has whole numbers (uint8). Raises InputError for another form."""
    floating = np.issubdtype(image.dtype, np.floating)
    if image.ndim not in (2, 3) or 0 in image.shape or not (floating or image.dtype == np.uint8):
        raise InputError(
            f"an image must be (H, W) or (H, W, C) of uint8 or floating point, got {image.dtype} {image.shape}"
        )
    return not floating


def _contributions(size: int, out: int, scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source pixels and weights (out, taps) of one pass of `imresize`."""
    shrink = min(scale, 1.0)
    width = 4 / shrink
    # MATLAB counts pixels from 1
    centre = np.arange(1, out + 1) / scale + 0.5 * (1 - 1 / scale)
    indices = np.floor(centre - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - indices), -0.5)
    weights /= weights.sum(1, keepdims=True)
    used = weights.any(0)
    return np.clip(indices[:, used].astype(np.int64) - 1, 0, size - 1), weights[:, used]


def _cubic(x: NDArray[Any], a: float) -> NDArray[np.float64]:
    """Keys' kernel: 1 at 0, and 0 from 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
