"""Images that a pipeline takes and returns: PIL images and tensors to 8-bit pixels, and results to PIL images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from esbnn_core.errors import InputError
from tasks.super_resolution.image_files import EightBitImage, convert_image
from tasks.super_resolution.resize import imresize

Pixels = NDArray[np.uint8]
Images = Image.Image | Sequence[Image.Image] | Tensor


def to_pil(
    tensor: Tensor, mode: str, alpha: Pixels | None, scale: int, info: Mapping[str, Any] | None = None
) -> Image.Image:
    """A result as a PIL image in 8 bits.

    Args:
        tensor: (3, H, W) in [0, 1].
        mode: L, LA, RGB or RGBA.
        alpha: (h, w) of the source, or None.
        scale: by which alpha is upsampled.
        info: for the image's own, as EightBitImage's.
    """
    image = Image.fromarray(to_pixels(tensor))
    if mode in ("L", "LA"):
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(imresize(alpha, scale)))
    image.info.update(info or {})
    return image


def to_pixels(tensor: Tensor) -> Pixels:
    """(3, H, W) in [0, 1] -> uint8 (H, W, 3), rounded."""
    return (tensor.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def read_pipeline_images(image: Images) -> list[EightBitImage]:
    """The images that a pipeline was called with. Raises InputError for anything else."""
    if isinstance(image, Tensor):
        return [EightBitImage(pixels, "RGB") for pixels in _tensor_pixels(image)]
    given = [image] if isinstance(image, Image.Image) else image
    if not isinstance(given, list | tuple):
        raise InputError(
            f"image must be a PIL image, a list of them or a tensor (N, 3, h, w), got a {type(image).__name__}: open a "
            f"file with PIL.Image.open"
        )
    if not given:
        raise InputError("image must be at least one PIL image, got an empty list")
    for place, one in enumerate(given):
        if not isinstance(one, Image.Image):
            raise InputError(f"image {place} of the list must be a PIL image, got a {type(one).__name__}")
        if 0 in one.size:
            raise InputError(f"image {place} of the list must have pixels, got {one.width}x{one.height}")
    return [convert_image(one, f"image {place} of the list") for place, one in enumerate(given)]


def _tensor_pixels(images: Tensor) -> list[Any]:
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape or not images.is_floating_point():
        raise InputError(
            f"an image tensor must be floating (N, 3, h, w) in [0, 1], got {tuple(images.shape)} of {images.dtype}"
        )
    if not (images.amin() >= 0 and images.amax() <= 1):  # NaN compares as false
        raise InputError("an image tensor must be in [0, 1], got other values: divide the pixels by 255")
    return list(images.detach().float().permute(0, 2, 3, 1).cpu().numpy())
