"""Classification datasets by name: where they are, what they hold, how their images are prepared.

A dataset is torchvision's own class (ImageNet's a subclass, see synsets). Its errors about a wrong or damaged folder
become one sentence.
"""

import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision import datasets
from torchvision.transforms import v2

from esbnn_core.errors import InputError, check_choice, reason_of
from esbnn_core.files import write_atomically
from tasks.classification.augment import IMAGENET, Augmentation, eval_transform, train_transform
from tasks.classification.generated import GeneratedImages
from tasks.classification.synsets import SynsetFolder

EMBEDDED = Path(__file__).parent / "assets" / "fashion_mnist"
"""Real images that come with the repository (MIT), see the README beside them."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of a dataset, and how to open a split.

    Attributes:
        classes: number of labels.
        channels: of an image.
        size: side of the square image, in pixels.
        mean: of the normalisation, for values in [0, 1].
        std: of the normalisation.
        layout: files that have to be under root.
        open: (root, train, download, number of classes) -> a torchvision dataset.
    """

    classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str
    open: Callable[[str, bool, bool, int], Any]

    def transform(self, augment: bool, size: int | None = None, options: Augmentation | None = None) -> v2.Compose:
        """The transform PIL image -> float tensor (C, size, size), normalised.

        28 and 32 pixels: pad, random crop and mirror, as the CIFAR recipes do. ImageNet: random resized crop and mirror
        to train, shorter side 256/224 of the size and centre crop to evaluate (papers.md#two-steps).

        Args:
            augment: for training.
            size: of the result; another one than the dataset's scales small images.
            options: further ones, see Augmentation.
        """
        make = train_transform if augment else eval_transform
        return make(options or Augmentation(), self.size, size or self.size, self.mean, self.std)


def _fashion_mnist(root: str, train: bool, download: bool, classes: int) -> Any:
    return datasets.FashionMNIST(root, train=train, download=download)


def _fashion_mnist_mini(root: str, train: bool, download: bool, classes: int) -> Any:
    """Unpack the repository's files into torchvision's layout, once, then read them like the full set."""
    home = Path(root) / "fashion_mnist_mini"
    embedded = sorted(EMBEDDED.glob("*.xz"))
    if len(embedded) != 4 and not home.exists():
        raise InputError(f"the images of fashion_mnist_mini are not in {EMBEDDED}: use a checkout of the repository")
    for packed in embedded:
        target = home / "FashionMNIST" / "raw" / packed.stem
        if not target.exists():
            write_atomically(target, lzma.decompress(packed.read_bytes()))
    return datasets.FashionMNIST(str(home), train=train)


def _cifar10(root: str, train: bool, download: bool, classes: int) -> Any:
    return datasets.CIFAR10(root, train=train, download=download)


def _imagenet(root: str, train: bool, download: bool, classes: int) -> Any:
    return SynsetFolder(root, train, classes)


def _generated(root: str, train: bool, download: bool, classes: int) -> Any:
    return GeneratedImages(train, classes, side=224)


_GREY = ((0.2860,), (0.3530,))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_IDX = "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"

DATASETS: dict[str, DatasetInfo] = {
    "fashion_mnist": DatasetInfo(10, 1, 28, *_GREY, _IDX, _fashion_mnist),
    "fashion_mnist_mini": DatasetInfo(10, 1, 28, *_GREY, f"fashion_mnist_mini/{_IDX}", _fashion_mnist_mini),
    "cifar10": DatasetInfo(10, 3, 32, *_CIFAR, "cifar-10-batches-py/{data_batch_1..5,test_batch}", _cifar10),
    "imagenet": DatasetInfo(1000, 3, 224, *IMAGENET, "{train,val}/<synset>/*.JPEG or Kaggle's archive", _imagenet),
    "generated": DatasetInfo(1000, 3, 224, *IMAGENET, "", _generated),
}


def open_split(name: str, root: str, train: bool, download: bool = False, num_classes: int | None = None) -> Any:
    """Open the training or test split of a dataset by name.

    Args:
        name: of DATASETS.
        root: see ClassificationDataModule.
        train: the training split.
        download: see ClassificationDataModule.
        num_classes: default the dataset's; a folder of fewer classes is labelled by its sorted folders (SynsetFolder).

    Raises:
        InputError: an unknown name; a root without the dataset, or with a damaged one.
    """
    info = dataset_info(name)
    part = "training" if train else "test"
    try:
        return info.open(root, train, download, num_classes or info.classes)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the {part} split of {name} cannot be read from {root} ({reason_of(error)}): it must be "
            f"{root}/{info.layout}, set data.root to the folder that has it"
            + (" or data.download to true" if name in _FETCHED else "")
        ) from error


_FETCHED = ("fashion_mnist", "cifar10")


def dataset_info(name: str) -> DatasetInfo:
    """Facts of a dataset by name. Raises InputError for an unknown one."""
    check_choice("dataset", name, DATASETS)
    return DATASETS[name]
