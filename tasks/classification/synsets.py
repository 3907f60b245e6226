"""An ImageNet folder: labels in the official order of the synsets, and errors of one sentence."""

from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torchvision import datasets

from esbnn_core.errors import InputError
from esbnn_core.lit.image_files import UNREADABLE, check_image_file, is_hidden, is_image, list_images, to_8_bits
from tasks.classification.kaggle import SOLUTION, find_part, find_solution, read_solution


@cache
def official_synsets() -> tuple[str, ...]:
    """The 1,000 synsets of ILSVRC 2012 by label: place i is class i of every published network (sorted names)."""
    return tuple((Path(__file__).parent / "wnids.txt").read_text().split())


def load_image(path: str, turn: bool = False) -> Image.Image:
    """Read an image file as RGB, grey ones too.

    Args:
        path: of the file.
        turn: as its EXIF entry says; false is torchvision's way, which the published networks were trained with.

    Raises:
        InputError: a file that cannot be read, by name.
    """
    check_image_file(path)
    try:
        with Image.open(path) as image:
            seen: Any = ImageOps.exif_transpose(image) if turn else image
            seen.format = image.format
            return to_8_bits(seen, f"image {path}").convert("RGB")
    except InputError:
        raise
    except UNREADABLE as error:
        reason = str(error).split(path)[0].strip(" '\"") or type(error).__name__
        raise InputError(f"image {path} cannot be read ({reason}): replace or remove it") from error


class SynsetFolder(datasets.ImageFolder):
    """Images under root/{train,val}/<class>/ or in Kaggle's layout; `official`: labels in the official order.

    With num_classes=1000 and folders named by official synsets a label is the synset's place among the 1,000, even if
    there are few folders. Otherwise it is the folder's place among the sorted folders. The validation images of
    Kaggle's archive are in one folder, and their synsets in LOC_val_solution.csv (tasks.classification.kaggle).

    Args:
        root: has train and val, or val alone.
        train: which of the two.
        num_classes: number of labels of the network.

    Raises:
        InputError: no class folder, more of them than classes, only some of 1,000 official, or other ones in the
            sibling part; an image that LOC_val_solution.csv does not have.
        FileNotFoundError: the part does not exist, or a class folder holds no image.
    """

    def __init__(self, root: str, train: bool, num_classes: int) -> None:
        self.num_classes = num_classes
        self.official = False
        part, sibling = ("train", "val") if train else ("val", "train")
        self._sibling = find_part(root, sibling)
        self._listed: list[tuple[Path, str]] = []
        super().__init__(str(find_part(root, part)), loader=load_image, is_valid_file=is_image)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """torchvision's hook: class folders by name, and the label of each."""
        names = _folders(Path(directory))
        if not names:
            self._listed = _read_listed(Path(directory))
            names = sorted({synset for _, synset in self._listed})
        if len(names) > self.num_classes:
            raise InputError(
                f"class folders of {directory} must be at most num_classes={self.num_classes}, got {len(names)}: set "
                f"data.num_classes"
            )
        beside = _folders(self._sibling) if self._sibling.is_dir() else []
        if beside and beside != names:
            first = min(set(beside) ^ set(names))
            here, there = (directory, self._sibling) if first in names else (self._sibling, directory)
            raise InputError(f"class folders of both parts must be the same, got {first} in {here} and not in {there}")
        order = {name: label for label, name in enumerate(official_synsets())}
        strange = [name for name in names if name not in order]
        self.official = self.num_classes == len(order) and not strange
        if self.num_classes == len(order) and 0 < len(strange) < len(names):
            raise InputError(
                f"class folders of {directory} must be ImageNet's {len(order):,} synsets, as others there are, got "
                f"{strange[0]}: remove it"
            )
        return names, {name: order[name] if self.official else label for label, name in enumerate(names)}

    def make_dataset(  # type: ignore[override]
        self, directory: str, class_to_idx: dict[str, int], *args: Any, **kwargs: Any
    ) -> list[tuple[str, int]]:
        """torchvision's hook: (path, label) of every image."""
        if self._listed:
            return [(str(path), class_to_idx[synset]) for path, synset in self._listed]
        found = super().make_dataset(directory, class_to_idx, *args, **kwargs)
        # torchvision walks through hidden folders too, such as .ipynb_checkpoints with its copies of images
        return [
            (path, label) for path, label in found if not any(map(is_hidden, Path(path).relative_to(directory).parts))
        ]


def _folders(directory: Path) -> list[str]:
    """Names of the class folders, sorted. Raises FileNotFoundError."""
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _read_listed(directory: Path) -> list[tuple[Path, str]]:
    """Images and synsets of a part without class folders, by the csv of Kaggle's archive. Raises InputError."""
    images = list_images(directory)
    solution = find_solution(directory) if images and directory.name == "val" else None
    if solution is not None:
        labels = read_solution(solution)
        for path in images:
            if path.stem not in labels:
                raise InputError(
                    f"image {path} must have a row in {solution}, got none: remove it, or restore the file"
                )
        return [(path, labels[path.stem]) for path in images]
    if images:
        raise InputError(
            f"{directory} holds {len(images):,} images and no class folder, as the ILSVRC archives unpack: place "
            f"{SOLUTION} of Kaggle's archive above it, or move it away and let "
            f"torchvision.datasets.ImageNet({str(directory.parent)!r}, {directory.name!r}) sort archive and devkit"
        )
    raise InputError(f"{directory} must hold class folders, {directory}/<synset>/*.JPEG, got none: set data.root")
