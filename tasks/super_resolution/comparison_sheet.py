"""Upsampled images for comparison: PNG files, and one sheet of bicubic, ours and HR side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esbnn_core.files import write_atomically
from tasks.super_resolution.metrics import Pixels, psnr_y
from tasks.super_resolution.resize import imresize

CROP = 144
"""Side of the region that is compared, in pixels of the results."""
ZOOM = 2
CELL = CROP * ZOOM
GAP, LINE, FONT = 8, 20, 14
MOST = 40
"""Most strips of a sheet."""
PAPER, INK, FRAME = (255, 255, 255), (20, 20, 20), (220, 40, 40)


@dataclass(frozen=True)
class Strip:
    """One line of a sheet.

    Attributes:
        name: of the image.
        cells: caption and pixels of each, 8-bit RGB of at most CELL x CELL.
    """

    name: str
    cells: tuple[tuple[str, Pixels], ...]


def write_png(path: str | Path, image: Image.Image) -> None:
    """Write a PNG file atomically, with the profile and the dpi of the image's info."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", icc_profile=image.info.get("icc_profile"), dpi=image.info.get("dpi"))
    write_atomically(path, buffer.getvalue())


def make_strip(name: str, lr: Pixels, ours: Pixels, hr: Pixels | None, scale: int) -> Strip:
    """The whole image with a frame around one region, and the region by bicubic, ours and in HR.

    The region is that of the most contrast between neighbours in LR, so results do not influence it. Captions give the
    PSNR of Y of the whole image if there is an HR.

    Args:
        name: of the image.
        lr: uint8 (h, w, 3).
        ours: uint8 (scale * h, scale * w, 3).
        hr: uint8 (scale * h, scale * w, 3), or None.
        scale: the HR side over the LR side.
    """
    bicubic = imresize(lr, scale)
    top, left = _find_contrast(lr, -(-CROP // scale))
    top, left = top * scale, left * scale
    cells = [(f"{name} x{scale}", _draw_overview(ours, top, left))]
    for label, image in (("bicubic", bicubic), ("ours", ours), ("HR", hr)):
        if image is None:
            continue
        scored = hr is not None and label != "HR"
        value = f" {psnr_y(image, hr, scale):.2f} dB" if scored and min(ours.shape[:2]) > 2 * scale else ""
        region = image[top : top + CROP, left : left + CROP]
        cells.append((label + value, region.repeat(ZOOM, 0).repeat(ZOOM, 1)))
    return Strip(name, tuple(cells))


def draw_sheet(strips: Sequence[Strip]) -> Image.Image:
    """Draw all strips below each other, by name; of more than MOST the first, with a last line that says so."""
    shown = sorted(strips, key=lambda strip: strip.name)[:MOST]
    columns = max((len(strip.cells) for strip in shown), default=1)
    heights = [max(cell.shape[0] for _, cell in strip.cells) + LINE + GAP for strip in shown]
    left_out = len(strips) - len(shown)
    size = (GAP + columns * (CELL + GAP), GAP + sum(heights) + (LINE if left_out else 0))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    top = GAP
    for strip, height in zip(shown, heights, strict=True):
        for column, (caption, pixels) in enumerate(strip.cells):
            left = GAP + column * (CELL + GAP)
            pen.text((left, top), _shorten(pen, caption, font), fill=INK, font=font)
            sheet.paste(Image.fromarray(pixels), (left, top + LINE))
        top += height
    if left_out:
        pen.text((GAP, top), f"{left_out:,} more images are not shown", fill=INK, font=font)
    return sheet


def _shorten(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, without its end if it is wider than a cell."""
    if pen.textlength(text, font=font) <= CELL:
        return text
    while text and pen.textlength(text + "...", font=font) > CELL:
        text = text[:-1]
    return text + "..."


def _find_contrast(lr: Pixels, side: int) -> tuple[int, int]:
    """Top and left of the square of that side with the largest sum of differences between neighbours."""
    grey = lr.astype(np.float64).mean(2)
    change = np.zeros(grey.shape)
    change[1:] += np.abs(np.diff(grey, axis=0))
    change[:, 1:] += np.abs(np.diff(grey, axis=1))
    rows, columns = (min(side, length) for length in grey.shape)
    whole = np.pad(change.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = whole[rows:, columns:] - whole[:-rows, columns:] - whole[rows:, :-columns] + whole[:-rows, :-columns]
    # rounded, because equal sums can differ in their last bits: the first of equal ones is taken
    top, left = divmod(int(np.argmax(np.round(sums, 6))), sums.shape[1])
    return top, left


def _draw_overview(image: Pixels, top: int, left: int) -> Pixels:
    """The whole image in one cell, with the region framed."""
    height, width = image.shape[:2]
    ratio = min(1.0, CELL / max(height, width))
    small = Image.fromarray(image).resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.LANCZOS)
    right, bottom = min(width, left + CROP), min(height, top + CROP)
    box = [round(value * ratio) for value in (left, top, right, bottom)]
    corners = (box[0], box[1], max(box[0], box[2] - 1), max(box[1], box[3] - 1))
    ImageDraw.Draw(small).rectangle(corners, outline=FRAME)
    return np.array(small)
