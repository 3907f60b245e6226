"""Detections for people and programs: boxes drawn on the image, and a COCO-style json."""

import colorsys
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from esbnn_core.files import write_atomically
from esbnn_core.lit.image_files import to_8_bits
from tasks.detection.scoring import ImageResult, coco_results


def draw_boxes(image: Image.Image, found: ImageResult, classes: Sequence[str], threshold: float = 0.3) -> Image.Image:
    """Draw the boxes of all detections of a score of at least `threshold` on a copy of the image (RGB).

    Each class has its colour; the best detections are drawn last, on top.
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    size = max(10, round(max(drawn.size) / 40))
    font, width = ImageFont.load_default(size), max(2, size // 6)
    for place in found.scores.argsort():
        if found.scores[place] < threshold:
            continue
        label = int(found.found_labels[place])
        x1, y1, x2, y2 = (float(v) for v in found.found_boxes[place])
        colour = _colour(label)
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour, width=width)
        text = f"{classes[label]} {found.scores[place]:.2f}"
        # above the box, or inside if there is no room
        left, top, right, bottom = pen.textbbox((x1, max(0.0, y1 - size - 2 * width)), text, font=font)
        pen.rectangle((left - width, top - width, right + width, bottom + width), fill=colour)
        pen.text((x1, max(0.0, y1 - size - 2 * width)), text, fill="white", font=font)
    return drawn


def write_drawing(
    source: str | Path, target: str | Path, found: ImageResult, classes: Sequence[str], least: float
) -> None:
    """Draw the detections of at least the score `least` on the image `source` and write the PNG `target`."""
    buffer = io.BytesIO()
    with Image.open(source) as image:
        seen: Any = ImageOps.exif_transpose(image)  # as the detector has seen it
        seen.format = image.format  # which a turned copy has not, and which says how deep its grey is
        turned = to_8_bits(seen, f"image {source}")
        draw_boxes(turned, found, classes, least).save(buffer, format="PNG")
    write_atomically(target, buffer.getvalue())


def write_results(
    target: str | Path, found: Sequence[ImageResult], files: dict[str, str], classes: Sequence[str]
) -> None:
    """Write all detections in COCO's form: images, categories, and annotations with a score each.

    Args:
        target: file to write.
        found: results; images are numbered from 1 in this order.
        files: file name by the identity of the image.
        classes: names in the order of their labels.
    """
    identities: dict[str, Any] = {image.identity: i for i, image in enumerate(found, 1)}
    whole = {
        "images": [
            {"id": i, "file_name": files[f.identity], "height": f.height, "width": f.width}
            for i, f in enumerate(found, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": [{"id": i, **result} for i, result in enumerate(coco_results(found, identities), 1)],
    }
    write_atomically(target, json.dumps(whole, indent=1).encode())


def _colour(label: int) -> tuple[int, int, int]:
    """Hues around the circle, neighbours far apart."""
    # with steps of the golden section no hue is close to an earlier one
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1, 0.85, 0.75 if label % 2 else 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
