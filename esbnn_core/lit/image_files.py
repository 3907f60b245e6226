"""Image files as all tasks find and read them: one list of endings, hidden files left out, 16 bits as 8, EXIF turns."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, UnidentifiedImageError

from esbnn_core.errors import InputError

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico"),
)
"""Endings of image files that Pillow reads, in lower case; a file's own may be in any case."""
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is not a whole image."""

_ORIENTATION = 0x0112
"""The EXIF entry of how the camera was held; 5 to 8 swap the sides, and no other number means anything."""
_TURNED = range(5, 9)
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 1 << 16
"""Bytes at the end of a file in which its end mark is searched; some programs write something after it."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder name begins with a dot, as .ipynb_checkpoints and macOS's ._ files do."""
    return name.startswith(".")


def is_image(path: str | Path) -> bool:
    """Whether the name is that of an image: a known ending, in any case, and not hidden."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not is_hidden(path.name)


def list_images(folder: Path, report_others: bool = False) -> list[Path]:
    """The image files directly in a folder, sorted by name; links to files that are not there are among them.

    Args:
        folder: hidden files in it are left out.
        report_others: name visible files that are not images in one line that is printed.
    """
    # a link to nowhere counts: who reads it names it, and no image of a data set is left out in silence
    files = [path for path in folder.iterdir() if not path.is_dir() and not is_hidden(path.name)]
    others = sorted(path.name for path in files if not is_image(path))
    if others and report_others:
        kind = "1 file is not an image" if len(others) == 1 else f"{len(others):,} files are not images"
        rank_zero_info(f"{folder}: {kind}, left out: {', '.join(others[:5])}")
    return sorted(path for path in files if is_image(path))


def check_none_replaced(written: Iterable[tuple[Path, Path]], read: Iterable[Path]) -> None:
    """Refuse predictions that would replace an image that is read.

    Args:
        written: each file of a prediction, with the image that it is of.
        read: every image that is read, whose prediction may be another one.

    Raises:
        InputError: naming the image of the first such prediction, and the one that it would replace.
    """
    kept = {path.resolve(): path for path in read}
    for file, image in written:
        lost = kept.get(file.resolve())
        if lost is not None:
            raise InputError(f"the prediction of {image} would replace {lost}: set model.predictions to another folder")


def to_8_bits(image: Image.Image, where: str = "image") -> Image.Image:
    """16-bit grey becomes 8-bit grey, with 65535 as white; other images are returned as they are.

    Pillow reads a PGM file of more than 8 bits in mode I, and has scaled its white to 65535.

    Raises:
        InputError: pixels of 32 bits, whose white is not known.
    """
    wide_pgm = image.mode == "I" and image.format == "PPM"
    if image.mode in ("I", "F") and not wide_pgm:
        raise InputError(f"pixels of {where} must have 8 or 16 bits, got 32 (mode {image.mode}): convert it")
    if not image.mode.startswith("I;16") and not wide_pgm:
        return image
    # 257 levels of 16 bits are one of 8
    grey = (np.asarray(image).astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8))


def check_image_file(path: str | Path) -> None:
    """Raise InputError unless the path is that of a file: a pipe would let its reader wait for ever."""
    try:
        if Path(path).is_file():
            return
        kind = "a folder, a pipe or a device" if Path(path).exists() else ""
    except OSError as error:
        raise InputError(f"image {path} cannot be read ({error.strerror}): replace it or take it out") from error
    if kind:
        raise InputError(f"image {path} must be a file, got {kind}: replace it or take it out")
    where = f", because it is a link to {Path(path).readlink()}" if Path(path).is_symlink() else ""
    raise InputError(f"image {path} does not exist{where}: place it there or take it out")


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as the image is seen, turned by its EXIF entry; from the header, and the end mark is looked for.

    Raises:
        InputError: a missing, unreadable or cut-off file.
    """
    check_image_file(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow would decode a whole PNG to look for EXIF after its pixels
            turned_by_pillow = image.format == "TIFF"
            looked_up = not turned_by_pillow and (image.format != "PNG" or "exif" in image.info)
            if looked_up and image.getexif().get(_ORIENTATION, 1) in _TURNED:
                width, height = height, width
            end = _ENDS.get(image.format or "", b"")
    except UNREADABLE as error:
        raise InputError(f"image {path} cannot be read as an image: replace it or take it out") from error
    with Path(path).open("rb") as file:
        file.seek(max(0, Path(path).stat().st_size - _TAIL))
        if end not in file.read():
            raise InputError(f"image {path} is cut off before its end: replace it or take it out")
    return width, height


def read_text(path: str | Path, what: str) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        InputError: other bytes, naming `what` and the file.
    """
    data = Path(path).read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} must be text in UTF-8, got other bytes ({error}): save it as UTF-8") from error
