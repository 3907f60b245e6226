"""Image files of every odd and broken kind that people have, a few hundred bytes each."""

import gzip
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE = (40, 32)
"""Width and height of those that can be read."""


def pixels(grey: bool = False) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise, so that damage in the middle of a file is damage to pixels."""
    shape = (SIZE[1], SIZE[0]) if grey else (SIZE[1], SIZE[0], 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """A PNG whose header says a size that its pixels do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def readable() -> dict[str, bytes]:
    """Files by name that every task reads: the pixels of `pixels()`, in grey in the names that begin with `grey`."""
    rgb, grey = Image.fromarray(pixels()), Image.fromarray(pixels(grey=True))
    wide = pixels(grey=True).astype(np.uint16) * 257
    alpha = rgb.copy()
    alpha.putalpha(grey)
    strange = Image.Exif()
    strange[0x0112] = 99  # no orientation
    other = Image.fromarray(255 - pixels())
    return {
        "plain.png": encode(rgb, "PNG"),
        "UPPER.PNG": encode(rgb, "PNG"),
        "bitmap.bmp": encode(rgb, "BMP"),
        "really_png.jpg": encode(rgb, "PNG"),
        "animated.webp": encode(rgb, "WEBP", lossless=True, save_all=True, append_images=[other]),
        "animated.png": encode(rgb, "PNG", save_all=True, append_images=[other]),
        "pages.tiff": encode(rgb, "TIFF", save_all=True, append_images=[other]),
        "deep.png": cv2.imencode(".png", pixels()[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
        "alpha.png": encode(alpha, "PNG"),
        "strange_turn.png": encode(rgb, "PNG", exif=strange),
        "name with ü, %20 and [1].png": encode(rgb, "PNG"),
        "grey.png": encode(grey, "PNG"),
        "grey16.png": cv2.imencode(".png", wide)[1].tobytes(),
        "grey16.tiff": encode(Image.fromarray(wide), "TIFF"),
        "grey16.pgm": b"P5 %d %d 65535\n" % SIZE + wide.astype(">u2").tobytes(),
    }


def broken() -> dict[str, bytes]:
    """Files by name that no task reads."""
    rgb = Image.fromarray(pixels())
    png, jpeg = encode(rgb, "PNG"), encode(rgb, "JPEG", quality=95)
    return {
        "empty.png": b"",
        "text.png": b"hello\n",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "hole.png": png[:600] + bytes(500) + png[1100:],
        "cut_with_end.png": png[:1500] + png[-12:],
        "one_bit.png": png[:900] + bytes([png[900] ^ 1]) + png[901:],
        "no_pixels.png": empty_png(0, 5),
        "enormous.png": empty_png(100_000, 100_000),
        "too_few_pixels.png": empty_png(64, 64),
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='48'/>",
        "packed.png": gzip.compress(png),
        "float.tiff": encode(rgb.convert("F"), "TIFF"),
        "whole_numbers.tiff": encode(rgb.convert("I"), "TIFF"),
    }


def write_places(folder: Path) -> list[Path]:
    """Paths with the name of an image that are no files: links to nowhere and to themselves, and a pipe."""
    (folder / "nowhere.png").symlink_to("missing.png")
    (folder / "itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "pipe.png")
    return [folder / name for name in ("nowhere.png", "itself.png", "pipe.png")]
