"""PASCAL VOC annotations read strictly: any fault is reported in one sentence that names the file.

A record is the dict that mmdet's VOCDataset makes of an annotation, so mmdet's transforms take it. Boxes count from 0,
the far corner is the last pixel inside, and difficult objects are flagged to be ignored.
"""

import codecs
import glob
import re
import reprlib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import is_hidden, is_image, read_image_size, read_text

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes in the order of their labels."""
_DECLARED = re.compile(rb"""<\?xml[^>]*encoding\s*=\s*["']([\w.-]+)["'][^>]*\?>""")
_OF_ONE_CLASS = re.compile(r"\s-?[01]$")
"""How the lines of VOC's lists for single classes end."""

_LONGEST = 250
"""Bytes of a name that leave room for an ending: file systems take 255."""

Record = dict[str, Any]


@dataclass
class Split:
    """An image list that was read.

    Attributes:
        records: of the images, in the order of the list.
        skipped: why an image was left out, a sentence by image id.
        other_objects: how many objects of each other class were left out.
    """

    records: list[Record] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    other_objects: Counter[str] = field(default_factory=Counter)


def read_split(
    root: str | Path,
    name: str,
    classes: Sequence[str] = VOC_CLASSES,
    skip_bad: bool = False,
    drop_other_classes: bool = False,
) -> Split:
    """All images of a list below a VOCdevkit root, in its order.

    Args:
        root: the VOCdevkit folder.
        name: YEAR/LIST, e.g. VOC2007/trainval for VOC2007/ImageSets/Main/trainval.txt.
        classes: names in the order of their labels.
        skip_bad: leave out images with a fault and say why in `skipped`.
        drop_other_classes: leave out objects of other classes and count them in `other_objects`.

    Raises:
        InputError: a missing or empty list, or no image left; the first fault of an image unless `skip_bad`.
    """
    folder, part = _folder(Path(root), name)
    path = folder / "ImageSets" / "Main" / f"{part}.txt"
    if not path.is_file():
        raise InputError(
            f"image list {path} does not exist: set data.root to the VOCdevkit folder, or name another list"
        )
    ids = [line.strip() for line in read_text(path, "image list").splitlines() if line.strip()]
    if not ids:
        raise InputError(f"image list {path} must have one image id a line, got none: fill it or name another list")
    # names may have blanks, and end in " 1" themselves
    of_one_class = all(_OF_ONE_CLASS.search(line) for line in ids)
    if of_one_class and not (folder / "Annotations" / f"{ids[0]}.xml").is_file():
        raise InputError(f"image list {path} must have one image id a line, got {ids[0]!r}: name a list of all classes")
    split = Split()
    for identity in ids:
        try:
            record = read_record(folder, identity, classes, split.other_objects if drop_other_classes else None)
            split.records.append(record)
        except InputError as error:
            if not skip_bad:
                raise
            split.skipped[identity] = str(error)
    if not split.records:
        raise InputError(
            f"image list {path} has no image left because all {len(ids)} were skipped, the first because "
            f"{split.skipped[ids[0]]}"
        )
    return split


def read_record(
    folder: Path, identity: str, classes: Sequence[str] = VOC_CLASSES, others: Counter[str] | None = None
) -> Record:
    """Read one image of a VOC year folder.

    Args:
        folder: of the year.
        identity: of the image, as the lists name it.
        classes: names in the order of their labels.
        others: if given, objects of other classes are left out and counted here.

    Returns:
        img_path, img_id, xml_path, height, width, and instances (none for an image without objects), each of bbox (x1,
        y1, x2, y2), bbox_label and ignore_flag.

    Raises:
        InputError: a missing or unreadable image or annotation, sizes that differ, an unknown class, or a box that is
            empty or outside the image.
    """
    if Path(identity).is_absolute() or ".." in Path(identity).parts or len(identity.encode()) > _LONGEST:
        raise InputError(
            f"images in a list of {folder} must be named as their files in JPEGImages, without ending, got "
            f"{reprlib.repr(identity)}: correct the list"
        )
    xml = folder / "Annotations" / f"{identity}.xml"
    image = find_image(folder / "JPEGImages", identity)
    root = _parse(xml)
    width, height = read_image_size(image)
    size = root.find("size")
    if size is not None:
        written = tuple(int(_number(size, key, xml, "size")) for key in ("width", "height"))
        if written != (width, height):
            raise InputError(
                f"the size in annotation {xml} must be the {width}x{height} pixels of image {image}, got "
                f"{written[0]}x{written[1]}: correct one of them"
            )
    nodes = root.findall("object")
    if len(nodes) != len(root.findall(".//object")):
        raise InputError(f"annotation {xml} must have each <object> directly in <annotation>: correct the file")
    if others is not None:
        other = [name for node in nodes if (name := _class_of(node)) not in classes]
        others.update(other)
        nodes = [node for node in nodes if _class_of(node) in classes]
    instances = [_instance(node, xml, (width, height), classes) for node in nodes]
    return {
        "img_id": identity,
        "img_path": str(image),
        "xml_path": str(xml),
        "height": height,
        "width": width,
        "instances": instances,
    }


def find_image(folder: Path, identity: str) -> Path:
    """The image file of an id, whatever its ending. Raises InputError."""
    for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"):  # found without listing the folder
        if (folder / f"{identity}{suffix}").is_file():
            return folder / f"{identity}{suffix}"
    found = [path for path in folder.glob(f"{glob.escape(identity)}.*") if path.stem == identity and is_image(path)]
    if found:
        return min(found)
    raise InputError(f"image {folder / identity}.jpg does not exist: place it there or take {identity} out of the list")


def _folder(root: Path, name: str) -> tuple[Path, str]:
    year, _, part = name.partition("/")
    if not year or not part or is_hidden(year) or is_hidden(part):
        raise InputError(f"image list must be YEAR/LIST, e.g. VOC2007/trainval, got {name!r}")
    if not (root / year).is_dir():
        raise InputError(f"{root} has no folder {year}: set data.root to the VOCdevkit folder that has it")
    return root / year, part


def _parse(path: Path) -> ET.Element:
    if not path.is_file():
        raise InputError(f"annotation {path} does not exist: place it there or take the image out of the list")
    if not path.stat().st_size:
        raise InputError(f"annotation {path} is an empty file: write it or take the image out of the list")
    try:
        root = ET.fromstring(_decoded(path.read_bytes()))
    except (ET.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise InputError(
            f"annotation {path} is not a whole XML file ({error}): fix it or take it out of the list"
        ) from error
    if root.tag != "annotation":
        raise InputError(f"annotation {path} must begin with <annotation> of PASCAL VOC, got <{root.tag}>")
    return root


def _decoded(data: bytes) -> str | bytes:
    """The text of an XML file; what its declaration names is decoded by Python, whose codecs are more than expat's."""
    marked = data.startswith(codecs.BOM_UTF8)  # which says more than a declaration that another program left
    data = data.removeprefix(codecs.BOM_UTF8)
    declared = _DECLARED.match(data)
    if declared is None:
        return data  # UTF-8 or UTF-16, by its first bytes
    text = data[declared.end() :].decode("utf-8" if marked else declared[1].decode())
    return text.lstrip()


def _number(node: ET.Element, key: str, path: Path, where: str) -> float:
    text = node.findtext(key)
    try:
        value = float("" if text is None or "_" in text else text)  # Python takes 1_0 for 10
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:  # not nan, inf or a typing error
        raise InputError(f"{key} in <{where}> of annotation {path} must be a number, got {text!r}: correct the file")
    return value


def _class_of(node: ET.Element) -> str:
    return (node.findtext("name") or "").strip()


def _instance(node: ET.Element, path: Path, size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
    name = _class_of(node)
    if name not in classes:
        raise InputError(
            f"classes of annotation {path} must be among the {len(classes)} of data.classes, got {name!r}: correct it, "
            f"set data.classes, or leave such objects out with data.drop_other_classes"
        )
    bounds = node.find("bndbox")
    if bounds is None:
        raise InputError(f"annotation {path} has a {name} without <bndbox>: correct the file")
    # VOC counts pixels from 1; decimals, as in a few files of 2011, are cut off as in mmdet
    x1, y1, x2, y2 = (int(_number(bounds, key, path, "bndbox")) - 1 for key in ("xmin", "ymin", "xmax", "ymax"))
    if x2 <= x1 or y2 <= y1:
        raise InputError(f"annotation {path} has a {name} whose box {_box(x1, y1, x2, y2)} is empty: correct the file")
    width, height = size
    # one pixel of tolerance on every side: some tools count from 0, others write the edge after the last pixel
    if x1 < -1 or y1 < -1 or x2 > width or y2 > height:
        raise InputError(
            f"annotation {path} has a {name} whose box {_box(x1, y1, x2, y2)} is outside the image of "
            f"{width}x{height} pixels: correct the file"
        )
    difficult = node.find("difficult")
    ignore = int(difficult is not None and _number(node, "difficult", path, "object") != 0)
    return {"bbox": [x1, y1, x2, y2], "bbox_label": list(classes).index(name), "ignore_flag": ignore}


def _box(*corners: int) -> str:
    """The corners as in the file, counted from 1."""
    return f"({', '.join(str(c + 1) for c in corners)})"
