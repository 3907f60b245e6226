"""Classification datasets by name: where they lie, what they hold, how their images are prepared.

Transforms are torchvision's (v2). A dataset is torchvision's own class; what it says of a wrong or damaged folder
becomes one sentence.
"""

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torchvision import datasets
from torchvision.transforms import v2

from esbnn_core.checkpoint import write_atomically
from esbnn_core.errors import InputError

EMBEDDED = Path(__file__).parents[2] / "tests" / "data" / "fashion_mnist"
"""The repository's own real images (MIT), see the README beside them."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a dataset: classes, channels, side of the square image, normalisation, and how to open a split.

    `open` is (root, train, download) -> a torchvision dataset; `layout` names what has to lie under root.
    """

    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str
    open: Callable[[str, bool, bool], Any]

    def transform(self, augment: bool, size: int | None = None) -> v2.Compose:
        """PIL image -> float tensor (C, size, size), normalised; `augment` for training.

        28 and 32 pixels: pad, random crop and mirror as the CIFAR recipes have it. ImageNet: random resized crop and
        mirror to train, shorter side 256/224 of the size and centre crop to evaluate (spec 3.5). Another `size`
        scales small images.
        """
        size = size or self.size
        steps: list[Any] = [v2.ToImage()]
        if self.size > 32:
            if augment:
                steps += [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
            else:
                steps += [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]
        else:
            if augment:
                steps += [v2.RandomCrop(self.size, padding=self.size // 8), v2.RandomHorizontalFlip()]
            if size != self.size:
                steps.append(v2.Resize((size, size), antialias=True))
        return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])


def _fashion_mnist(root: str, train: bool, download: bool) -> Any:
    return datasets.FashionMNIST(root, train=train, download=download)


def _fashion_mnist_mini(root: str, train: bool, download: bool) -> Any:
    """Unpack the repository's files into torchvision's layout, once, then read them as the full set is read."""
    home = Path(root) / "fashion_mnist_mini"
    embedded = sorted(EMBEDDED.glob("*.xz"))
    if len(embedded) != 4 and not home.exists():
        raise InputError(f"the images of fashion_mnist_mini are not in {EMBEDDED}: use a checkout of the repository")
    for packed in embedded:
        target = home / "FashionMNIST" / "raw" / packed.stem
        if not target.exists():
            write_atomically(target, lzma.decompress(packed.read_bytes()))
    return datasets.FashionMNIST(str(home), train=train)


def _cifar10(root: str, train: bool, download: bool) -> Any:
    return datasets.CIFAR10(root, train=train, download=download)


def _imagenet(root: str, train: bool, download: bool) -> Any:
    return datasets.ImageFolder(str(Path(root) / ("train" if train else "val")), loader=load_image)


def load_image(path: str) -> Image.Image:
    """An image file as RGB (grey ones are widened). Raises InputError that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = str(error).split(path)[0].strip(" '\"") or type(error).__name__
        raise InputError(f"image {path} cannot be read ({reason}): replace it or take it out") from error


_GREY = ((0.2860,), (0.3530,))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IDX = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"

DATASETS: dict[str, DatasetInfo] = {
    "fashion_mnist": DatasetInfo(10, 1, 28, *_GREY, _IDX, _fashion_mnist),
    "fashion_mnist_mini": DatasetInfo(10, 1, 28, *_GREY, f"fashion_mnist_mini/{_IDX}", _fashion_mnist_mini),
    "cifar10": DatasetInfo(10, 3, 32, *_CIFAR, "cifar-10-batches-py/{data_batch_1..5,test_batch}", _cifar10),
    "imagenet": DatasetInfo(1000, 3, 224, *_IMAGENET, "{train,val}/<synset>/*.JPEG", _imagenet),
}


def open_split(name: str, root: str, train: bool, download: bool = False) -> Any:
    """The training or test split of a dataset by name.

    Raises:
        InputError: an unknown name; a root without the dataset, or with a damaged one.
    """
    info = dataset_info(name)
    part = "training" if train else "test"
    try:
        return info.open(root, train, download)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the {part} split of {name} cannot be read from {root} ({reason}): {root}/{info.layout} was expected, set "
            f"data.root to the folder that has it" + (" or data.download to true" if name in _FETCHED else "")
        ) from error


_FETCHED = ("fashion_mnist", "cifar10")


def dataset_info(name: str) -> DatasetInfo:
    """Facts of a dataset by name. Raises InputError for an unknown one."""
    if name not in DATASETS:
        raise InputError(f"dataset {name!r} is not known, one of {', '.join(DATASETS)} was expected")
    return DATASETS[name]
