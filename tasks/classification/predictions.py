"""predictions.csv: what a classifier takes the images of a folder, or of the test split, for."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from esbnn_core.errors import InputError
from esbnn_core.files import write_atomically
from esbnn_core.lit.image_files import SUFFIXES, list_images
from tasks.classification.synsets import load_image, official_synsets

TOP = 5
"""Classes that a row names, fewer where the network knows fewer."""

Prediction = tuple[int, list[int], list[float]]
"""Place of the image, its likeliest classes and their probabilities, best first."""


class FolderImages(Dataset[tuple[Image.Image, int]]):
    """The images of a folder and the folders in it, by path; an item is (image, its place), the image RGB or grey.

    Images are turned as their EXIF entry says.

    Args:
        folder: hidden files and folders are left out.
        channels: 3 for RGB, 1 for grey.
        side: of the images that the network was trained on, where those are small and have one size; other images are
            scaled to it by their shorter side and cut in the middle.

    Raises:
        InputError: a folder that does not exist or holds no image.
    """

    def __init__(self, folder: str | Path, channels: int, side: int | None) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"folder {folder} does not exist: set data.predict to a folder of images")
        inside = sorted(p for p in root.rglob("*") if p.is_dir() and not _hidden(p.relative_to(root)))
        self.paths = [path for place in (root, *inside) for path in list_images(place, report_others=True)]
        if not self.paths:
            raise InputError(f"folder {folder} holds no image ({', '.join(SUFFIXES[:3])}, ...): set data.predict")
        self.names = [str(path.relative_to(root)) for path in self.paths]
        self.mode = "L" if channels == 1 else "RGB"
        self.fit = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side)]) if side else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = load_image(str(self.paths[index]), turn=True).convert(self.mode)
        return (image if self.fit is None else self.fit(image)), index


class Places(Dataset[tuple[Any, int]]):
    """A dataset whose items have their place in the label's stead.

    Args:
        dataset: (image, label) by index.
        names: of its items, the numbers where there are none.
    """

    def __init__(self, dataset: Any, names: Sequence[str] | None = None) -> None:
        self.dataset = dataset
        self.names = list(names) if names is not None else [str(i) for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index][0], index


def class_names(dataset: Any, classes: int) -> list[str]:
    """Names by label: of an opened dataset, of ImageNet's synsets in words, else the numbers."""
    known = getattr(dataset, "classes", None)
    if getattr(dataset, "official", False) or (dataset is None and classes == len(official_synsets())):
        from timm.data import ImageNetInfo

        words = ImageNetInfo()  # reads its lists from files
        return [words.index_to_description(i) for i in range(classes)]
    named = [str(name) for name in known] if isinstance(known, list | tuple) and len(known) == classes else None
    return named or [str(i) for i in range(classes)]


def best_classes(logits: Tensor, places: Tensor) -> list[Prediction]:
    """The likeliest classes of a batch; items of place -1 (padding) are left out.

    Args:
        logits: (N, classes).
        places: int64 (N,).
    """
    values, labels = logits.float().softmax(1).topk(min(TOP, logits.shape[1]), dim=1)
    rows = zip(places.tolist(), labels.tolist(), values.tolist(), strict=True)
    return [(place, classes, shares) for place, classes, shares in rows if place >= 0]


def write_predictions(target: Path, found: Sequence[Prediction], files: Sequence[str], names: Sequence[str]) -> None:
    """Write one row an image in the order of `files`: file, class, name, probability, and the same of the next best."""
    text = io.StringIO()
    writer = csv.writer(text)
    number = len(found[0][1]) if found else 1
    head = ["file", "class", "name", "probability"]
    writer.writerow([*head, *(f"{column}_{i}" for i in range(2, number + 1) for column in head[1:])])
    for place, classes, shares in sorted(found):
        cells = [cell for c, p in zip(classes, shares, strict=True) for cell in (c, names[c], f"{p:.6f}")]
        writer.writerow([files[place], *cells])
    write_atomically(target, text.getvalue().encode())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
