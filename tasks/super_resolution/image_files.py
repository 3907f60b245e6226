"""Image files of every kind as 8-bit RGB, with what a result takes over: mode, alpha, colour profile and density."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import UNREADABLE, check_image_file, to_8_bits


@dataclass
class EightBitImage:
    """An image in 8 bits.

    Attributes:
        rgb: uint8 (H, W, 3), grey repeated.
        mode: of the source, "L", "LA", "RGB" or "RGBA" after a palette, 1 bit or 16 bits became 8 bits.
        alpha: uint8 (H, W), None for a mode without alpha.
        info: what PIL.Image.Image.info says of it and a result keeps: icc_profile, if it is one of these colours, and
            dpi.
    """

    rgb: NDArray[np.uint8]
    mode: str
    alpha: NDArray[np.uint8] | None = None
    info: dict[str, Any] = field(default_factory=dict)


def convert_image(image: Image.Image, where: str = "image") -> EightBitImage:
    """Convert a PIL image of any mode. Raises InputError for 32-bit pixels, which have no defined white."""
    given = image.info
    image = to_8_bits(image, where)
    base = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    info = _kept_info(given, base)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # Pillow cannot convert La to RGBa in one step
        plain = image.convert("LA") if image.mode == "La" else image
        rgba = np.array(plain.convert("RGBA"))
        return EightBitImage(np.ascontiguousarray(rgba[..., :3]), f"{base}A", np.ascontiguousarray(rgba[..., 3]), info)
    rgb = np.array(image.convert("L").convert("RGB") if base == "L" else image.convert("RGB"))
    return EightBitImage(rgb, base, info=info)


def _kept_info(info: dict[Any, Any], base: str) -> dict[str, Any]:
    """The colour profile, if it is for grey or RGB as the pixels are (not of a CMYK file), and the density."""
    kept: dict[str, Any] = {}
    profile = info.get("icc_profile")
    # bytes 16 to 20 of a profile name the kind of its colours
    if isinstance(profile, bytes) and profile[16:20] == {"L": b"GRAY", "RGB": b"RGB "}[base]:
        kept["icc_profile"] = profile
    try:
        across, down = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return kept
    if all(math.isfinite(value) and 0 < value < 1e6 for value in (across, down)):
        kept["dpi"] = (across, down)
    return kept


def read_image(path: str | Path) -> EightBitImage:
    """Read an image file, turned by its EXIF entry; of an animation the first frame. Raises InputError."""
    check_image_file(path)
    try:
        with Image.open(path) as image:
            image.load()
            turned: Any = ImageOps.exif_transpose(image)
            turned.format = image.format
    except UNREADABLE as error:
        raise InputError(f"image {path} cannot be read to its end: replace it or take it out") from error
    return convert_image(turned, f"image {path}")
