"""Image files of every kind as 8-bit RGB, with the mode and alpha that a result takes over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import UNREADABLE, to_8_bits


@dataclass
class EightBitImage:
    """An image in 8 bits.

    Attributes:
        rgb: uint8 (H, W, 3), grey repeated.
        mode: of the source, "L", "LA", "RGB" or "RGBA" after a palette, 1 bit or 16 bits became 8 bits.
        alpha: uint8 (H, W), None for a mode without alpha.
    """

    rgb: NDArray[np.uint8]
    mode: str
    alpha: NDArray[np.uint8] | None = None


def convert_image(image: Image.Image, where: str = "image") -> EightBitImage:
    """Convert a PIL image of any mode. Raises InputError for 32-bit pixels, which have no defined white."""
    image = to_8_bits(image, where)
    base = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # Pillow cannot convert La to RGBa in one step
        plain = image.convert("LA") if image.mode == "La" else image
        rgba = np.array(plain.convert("RGBA"))
        return EightBitImage(np.ascontiguousarray(rgba[..., :3]), f"{base}A", np.ascontiguousarray(rgba[..., 3]))
    return EightBitImage(np.array(image.convert("L").convert("RGB") if base == "L" else image.convert("RGB")), base)


def read_image(path: str | Path) -> EightBitImage:
    """Read an image file, turned by its EXIF entry; of an animation the first frame. Raises InputError."""
    try:
        with Image.open(path) as image:
            image.load()
            turned: Any = ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist: place it there") from error
    except UNREADABLE as error:
        raise InputError(f"image {path} cannot be read to its end: replace it or take it out") from error
    return convert_image(turned, f"image {path}")
