"""ImageNet as Kaggle's archive unpacks: parts under Data/CLS-LOC, validation images in one folder with labels in a csv.

The archive holds ILSVRC/Data/CLS-LOC/{train,val,test} and, above ILSVRC, LOC_val_solution.csv: an image's name and its
boxes, each with the synset before its corners.
"""

import csv
import re
from pathlib import Path

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import read_text

SOLUTION = "LOC_val_solution.csv"
FOLDERS = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
"""Where the parts may be below a root."""
_ABOVE = 4
"""How many folders above a part the csv may be: CLS-LOC, Data, ILSVRC, and the one that the archive unpacks into."""


def find_part(root: str | Path, part: str) -> Path:
    """Folder of train or val below a root, the first of FOLDERS that exists; root/part where none does."""
    places = [Path(root) / folder / part for folder in FOLDERS]
    return next((place for place in places if place.is_dir()), places[0])


def find_solution(folder: Path) -> Path | None:
    """The csv with the labels of a folder of validation images: in it, or in one above it."""
    whole = folder.absolute()
    places = [place / SOLUTION for place in (whole, *list(whole.parents)[:_ABOVE])]
    return next((place for place in places if place.is_file()), None)


def read_solution(path: Path) -> dict[str, str]:
    """The synset of every image, by its name without ending.

    Raises:
        InputError: a file of another form, an image given twice or with boxes of several synsets.
    """
    labels: dict[str, str] = {}
    try:
        head, *rows = [*csv.reader(read_text(path, "label file").splitlines())] or [[]]
    except csv.Error as error:
        raise InputError(f"label file {path} cannot be read as a csv ({error}): unpack it again") from error
    if head != ["ImageId", "PredictionString"]:
        raise InputError(
            f"label file {path} must begin with ImageId,PredictionString, got {','.join(head)[:80]!r}: unpack it again"
        )
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        words = row[1].split() if len(row) == 2 else []
        synsets = set(words[::5])
        if len(synsets) != 1 or len(words) % 5 or not re.fullmatch(r"n\d{8}", words[0]):
            raise InputError(
                f"line {number} of label file {path} must be an image's name and boxes of one synset, got "
                f"{','.join(row)[:80]!r}: unpack it again"
            )
        if row[0] in labels:
            raise InputError(
                f"line {number} of label file {path} has the image {row[0]} a second time: unpack it again"
            )
        labels[row[0]] = words[0]
    return labels
