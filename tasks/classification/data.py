"""ClassificationDataModule: datasets by name, our own split, loaders that repeat exactly."""

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Subset

from esbnn_core.errors import InputError
from esbnn_core.lit.data import EpochSampler, SeededDataset, mix_seed
from tasks.classification.datasets import dataset_info, open_split


class ClassificationDataModule(L.LightningDataModule):
    """FashionMNIST, CIFAR-10 or an ImageNet folder, by name (tasks.classification.datasets.DATASETS).

    Args:
        dataset: name. root: folder that has it. download: let torchvision fetch it.
        batch_size: images per process and step. num_workers: loader processes; results do not depend on it.
        val_size: images split off the training set for validation, chosen by `seed`; 0 validates on the test split.
        augment: random crop and mirror in training. image_size: side, default the dataset's own.
        num_classes: default the dataset's; a folder dataset with fewer classes needs it said.
        train_size, test_size: use the first so many images only, 0 for all.
        seed: of the split and of every epoch's order (linked to seed_everything on the command line).

    Batches are images float32 (B, C, H, W) and labels int64 (B,); evaluation labels may hold IGNORE (see
    esbnn_core.lit.data) where processes do not divide the set.

    Raises:
        InputError: an unknown dataset at construction; a missing or damaged one at setup; sizes that do not fit.
    """

    def __init__(
        self,
        dataset: str = "fashion_mnist_mini",
        root: str = "data",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        val_size: int = 0,
        augment: bool = True,
        image_size: int | None = None,
        num_classes: int | None = None,
        train_size: int = 0,
        test_size: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.info = dataset_info(dataset)
        self.dataset, self.root, self.download = dataset, root, download
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_size, self.train_size, self.test_size = val_size, train_size, test_size
        self.augment, self.image_size, self.seed = augment, image_size, seed
        self.num_classes = num_classes or self.info.classes
        self.splits: dict[str, SeededDataset] = {}
        self._opened: dict[bool, Any] = {}

    def prepare_data(self) -> None:
        """On one process: unpack or fetch, and fail here if the root is wrong."""
        for train in (True, False):
            open_split(self.dataset, self.root, train, self.download)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that the stage needs."""
        parts = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for part in parts[stage] if stage else ("train", "val", "test"):
            if part not in self.splits:
                self.splits[part] = self._split(part)

    def _open(self, train: bool) -> Any:
        """The training or test split, opened once for all parts that are cut from it."""
        if train not in self._opened:
            whole = open_split(self.dataset, self.root, train)
            labels = getattr(whole, "targets", None)
            if labels is not None and len(labels) and int(max(labels)) >= self.num_classes:
                raise InputError(
                    f"dataset {self.dataset} in {self.root} has label {int(max(labels))}, labels below "
                    f"num_classes={self.num_classes} were expected: set data.num_classes"
                )
            self._opened[train] = whole
        return self._opened[train]

    def _split(self, part: str) -> SeededDataset:
        from_train = part == "train" or (part == "val" and self.val_size > 0)
        whole = self._open(from_train)
        if not from_train:
            indices = list(range(self.test_size or len(whole)))
        else:
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(mix_seed(self.seed, 1)))
            if self.val_size >= len(whole):
                raise InputError(
                    f"val_size={self.val_size} was given for {len(whole)} training images: leave some to train on"
                )
            held, rest = order[: self.val_size].tolist(), order[self.val_size :].tolist()
            indices = held if part == "val" else rest[: self.train_size or len(rest)]
        train = part == "train"
        augment = train and self.augment
        transform = self.info.transform(augment, self.image_size)
        return SeededDataset(Subset(whole, indices[: len(whole)]), transform, random=augment)

    def _loader(self, part: str) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        data = self.splits[part]
        sampler = EpochSampler(len(data), shuffle=part == "train", seed=self.seed, rank=rank, world=world)
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # a last batch of one image has no batch statistics
            drop_last=part == "train" and len(sampler) > self.batch_size,
            # private: drawing worker seeds from the global generator would shift the network's own draws
            generator=torch.Generator().manual_seed(mix_seed(self.seed, 2)),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by (seed, epoch), augmented by (seed, epoch, index)."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """In order, every image once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In order, every image once."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test split."""
        return self._loader("test")
