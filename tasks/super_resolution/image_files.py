"""Image files of every kind as 8-bit RGB, with the mode and alpha that a result takes over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from esbnn_core.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Suffixes of image files in lower case; a file may have them in upper case."""

_ORIENTATION = 0x0112
"""The EXIF entry of the orientation; 5 to 8 are turned by 90 degrees."""
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 1 << 16
"""Bytes at the end of a file that are searched for its end mark; some programs write more after it."""
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


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
    if image.mode in ("I", "F"):
        raise InputError(f"pixels of {where} must have 8 or 16 bits, got 32 (mode {image.mode}): convert it")
    if image.mode.startswith("I;16"):
        # 65535 is white; 257 grey levels become one of 8 bits
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return EightBitImage(np.repeat(grey[..., None].astype(np.uint8), 3, 2), "L")
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
    except _UNREADABLE as error:
        raise InputError(f"image {path} cannot be read to its end: replace it or take it out") from error
    return convert_image(turned, f"image {path}")


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header; of the rest only the end mark is read. Raises InputError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow would decode a whole PNG to find EXIF after its pixels
            if (image.format != "PNG" or "exif" in image.info) and image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            end = _ENDS.get(image.format or "", b"")
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist: place it there") from error
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read as an image: replace it or take it out of the folder") from error
    with Path(path).open("rb") as file:
        file.seek(max(0, Path(path).stat().st_size - _TAIL))
        if end not in file.read():
            raise InputError(f"image {path} is cut off before its end: replace it or take it out of the folder")
    return width, height


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by name, without hidden ones, which macOS leaves in folders."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
