"""The data sets of published values: their images, where they are below --data, and how a person gets them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        name: as the tasks and the catalogue call it.
        images: number of images of a split as it was published.
        folder: below --data, the root that the task takes.
        evidence: paths below --data; one of them exists if the data is there.
        get: how to get it.
    """

    name: str
    images: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""
    evidence: tuple[str, ...] = ()
    get: str = ""


_SR = "download its archive from the link in the README of BI-DiffSR or of BasicSR and unpack it there"
DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset("fashion_mnist_mini", {"test": 3_000}),  # our own part of Fashion-MNIST, in the repository
        Dataset("fashion_mnist", {"test": 10_000}),
        Dataset(
            "cifar10",
            {"test": 10_000},
            "",
            ("cifar-10-batches-py",),
            "unpack cifar-10-python.tar.gz of www.cs.toronto.edu/~kriz/cifar.html there",
        ),
        Dataset("cifar100", {"test": 10_000}),
        Dataset(
            "imagenet",
            {"val": 50_000, "test": 50_000},  # the images of val under both names
            "imagenet",
            ("imagenet/val", "imagenet/ILSVRC/Data/CLS-LOC/val", "imagenet/Data/CLS-LOC/val"),
            "sign in at image-net.org, download ILSVRC2012 and unpack it into train/WNID and val/WNID there, or unpack "
            "Kaggle's archive there",
        ),
        Dataset(
            "VOC2007",
            {"test": 4_952},
            "VOCdevkit",
            ("VOCdevkit/VOC2007/ImageSets/Main/test.txt",),
            "unpack VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar of "
            "host.robots.ox.ac.uk/pascal/VOC there",
        ),
        Dataset("Set5", {"test": 5}, "sr", ("sr/Set5", "sr/benchmark/Set5"), _SR),
        Dataset("Set14", {"test": 14}),
        Dataset(
            "B100",
            {"test": 100},
            "sr",
            ("sr/B100", "sr/BSD100", "sr/benchmark/B100", "sr/benchmark/BSD100"),
            _SR,
        ),
        Dataset("BSD100", {"test": 100}),  # another name of B100
        Dataset("Urban100", {"test": 100}, "sr", ("sr/Urban100", "sr/benchmark/Urban100"), _SR),
        Dataset(
            "Manga109",
            {"test": 109},
            "sr",
            ("sr/Manga109", "sr/benchmark/Manga109"),
            "ask for it at www.manga109.org and unpack it there",
        ),
    )
}
"""By name."""
