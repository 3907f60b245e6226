"""Image files of every kind as 8-bit RGB, with what is needed to give a result the kind of its source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from esbnn_core.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Endings of image files, in lower case; a file's own may be in upper case."""

_ORIENTATION = 0x0112
"""The EXIF entry that says how a camera was held; 5 to 8 lie on their side."""
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 1 << 16
"""Bytes at the end of a file in which its end mark is looked for; some programs write something behind it."""
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass
class Picture:
    """An image in 8 bits.

    rgb: uint8 (H, W, 3), grey repeated. mode: "L", "LA", "RGB" or "RGBA", what the source holds once a palette, 1 bit
    or 16 bits are spelled out in 8. alpha: uint8 (H, W) where the mode has it, else None.
    """

    rgb: NDArray[np.uint8]
    mode: str
    alpha: NDArray[np.uint8] | None = None


def to_picture(image: Image.Image, where: str = "image") -> Picture:
    """A PIL image of any mode. Raises InputError for 32-bit pixels, whose white nobody knows."""
    if image.mode in ("I", "F"):
        raise InputError(f"{where} has pixels of 32 bits (mode {image.mode}), 8 or 16 bits were expected: convert it")
    if image.mode.startswith("I;16"):
        # 65535 is white, 257 grey levels make one of 8 bits
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Picture(np.repeat(grey[..., None].astype(np.uint8), 3, 2), "L")
    base = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        # RGBa cannot be reached from La in one step
        plain = image.convert("LA") if image.mode == "La" else image
        rgba = np.array(plain.convert("RGBA"))
        return Picture(np.ascontiguousarray(rgba[..., :3]), f"{base}A", np.ascontiguousarray(rgba[..., 3]))
    return Picture(np.array(image.convert("L").convert("RGB") if base == "L" else image.convert("RGB")), base)


def read_picture(path: str | Path) -> Picture:
    """An image file, turned as its EXIF entry says; of an animation the first frame. Raises InputError."""
    try:
        with Image.open(path) as image:
            image.load()
            turned: Any = ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist: place it there") from error
    except _UNREADABLE as error:
        raise InputError(f"image {path} cannot be read to its end: replace it or take it out") from error
    return to_picture(turned, f"image {path}")


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) from the header, of the rest the end mark alone is looked at. Raises InputError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow would decode a whole PNG to look for EXIF behind its pixels
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
            raise InputError(f"image {path} is cut off, its end is missing: replace it or take it out of the folder")
    return width, height


def picture_paths(folder: Path) -> list[Path]:
    """The image files right in a folder, by name; hidden ones, such as macOS leaves behind, are none."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
