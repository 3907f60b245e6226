"""ClassificationDataModule: datasets by name, our own split, loaders that repeat exactly."""

import os
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Subset

from esbnn_core.errors import InputError, check_at_least, check_counts, check_workers
from esbnn_core.lit.data import MixedBatches, SeededDataset, as_it_is, mix_seed
from esbnn_core.lit.resumable import make_sampler, overfits, resumable_loader
from tasks.classification.augment import SMALL, Augmentation, batch_mixture, padding
from tasks.classification.datasets import dataset_info, open_split
from tasks.classification.on_device import KeyBatches, Keys, ResidentImages
from tasks.classification.predictions import FolderImages, Places, class_names
from tasks.classification.synsets import SynsetFolder


class ClassificationDataModule(L.LightningDataModule):
    """FashionMNIST, CIFAR-10, an ImageNet folder or generated images, by name (tasks.classification.datasets.DATASETS).

    Batches are images float32 (B, C, H, W) and labels int64 (B,). With mixup or cutmix the labels of training are
    probabilities (B, num_classes). Evaluation labels may hold IGNORE (see esbnn_core.lit.data) if the number of
    processes does not divide the set.

    Args:
        dataset: name.
        root: folder that has it.
        download: let torchvision fetch it.
        batch_size: images per process and step.
        num_workers: loader processes; results do not depend on it.
        val_size: images split off the training set for validation, chosen by `seed`; 0 validates on the test split.
        augment: random crop and mirror in training, and everything in `augmentation`; false trains on the images as
            they are evaluated.
        image_size: side, default the dataset's own.
        num_classes: default the dataset's; required for a folder dataset with fewer classes. With 1,000 the labels of
            an ImageNet folder are those of the official synset order, with fewer those of its sorted folders.
        train_size: number of training images to use, drawn by `seed` from those that val_size leaves; 0 for all.
        test_size: number of test images to use, the first ones; 0 for all. Those of a folder, which come class by
            class, are spread evenly over it.
        seed: of the split and of every epoch's order (linked to seed_everything on the command line).
        augmentation: options of the recipe, from RandAugment to mixup, and of the evaluation crop.
        prefetch_factor: batches that each loader process keeps ready.
        on_device: keep the images of a small dataset on the device that trains, and crop and mirror them there (see
            tasks.classification.on_device): the same kind of images, drawn from other random numbers.
        predict: folder of the user's own images to predict on, default the test split.

    Raises:
        InputError: at construction an unknown dataset or a number out of its range; at setup a missing or damaged
            dataset, or sizes that do not fit.
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
        augmentation: Augmentation = Augmentation(),  # noqa: B008  (frozen)
        prefetch_factor: int = 2,
        on_device: bool = False,
        predict: str | None = None,
    ) -> None:
        super().__init__()
        self.info = dataset_info(dataset)
        check_at_least(1, data__batch_size=batch_size, data__prefetch_factor=prefetch_factor)
        check_workers("data.num_workers", num_workers)
        check_at_least(0, data__val_size=val_size, data__train_size=train_size, data__test_size=test_size)
        given = {"data.image_size": image_size, "data.num_classes": num_classes}
        check_counts(**{name: value for name, value in given.items() if value is not None})
        self.dataset, self.root, self.download = dataset, os.path.expanduser(root), download
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_size, self.train_size, self.test_size = val_size, train_size, test_size
        self.augment, self.image_size, self.seed = augment, image_size, seed
        self.num_classes = num_classes or self.info.classes
        self.augmentation, self.prefetch_factor = augmentation, prefetch_factor
        augmentation.check(dataset, self.info.channels, self.info.size)
        self.on_device, self.predict = on_device, predict
        if on_device:
            self._check_on_device()
        self.splits: dict[str, SeededDataset] = {}
        self._resident: dict[str, ResidentImages] = {}
        self._opened: dict[bool, Any] = {}
        self.label_order = ""
        self.predict_files: list[str] = []

    def prepare_data(self) -> None:
        """On one process: unpack or fetch, and fail here if the root is wrong."""
        if self.predict is not None and self.trainer is not None and self.trainer.predicting:
            return
        for train in (True, False):
            open_split(self.dataset, self.root, train, self.download, self.num_classes)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that the stage needs."""
        parts = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        parts["predict"] += () if self.predict is not None else ("test",)
        for part in parts[stage] if stage else ("train", "val", "test"):
            if part not in self.splits:
                self.splits[part] = self._split(part)

    def _open(self, train: bool) -> Any:
        """The training or test split, opened once for all parts that are cut from it."""
        if train not in self._opened:
            whole = open_split(self.dataset, self.root, train, num_classes=self.num_classes)
            if isinstance(whole, SynsetFolder) and not self.label_order:
                self.label_order = "official synset order" if whole.official else "order of the sorted folders"
                rank_zero_info(f"labels of {self.root}: {self.label_order}, {len(whole.classes):,} class folders")
            labels = getattr(whole, "targets", None)
            highest = int(torch.as_tensor(labels).max()) if labels is not None and len(labels) else 0
            if highest >= self.num_classes:
                raise InputError(
                    f"labels of {self.dataset} in {self.root} must be below num_classes={self.num_classes}, got "
                    f"{highest}: set data.num_classes"
                )
            self._opened[train] = whole
        return self._opened[train]

    def _predict_split(self) -> SeededDataset:
        """The user's folder, or the test split, with an item's place in the label's stead."""
        transform = self.info.transform(False, self.image_size, self.augmentation)
        if self.predict is not None:
            side = self.info.size if self.info.size <= SMALL else None
            items: Any = FolderImages(self.predict, self.info.channels, side)
        else:
            whole = self._open(train=False)
            chosen = self._test_images(whole)
            paths = [whole.samples[index][0] for index in chosen] if isinstance(whole, SynsetFolder) else None
            items = Places(Subset(whole, chosen), paths)
        self.predict_files = items.names
        return SeededDataset(items, transform, random=False)

    @property
    def class_names(self) -> list[str]:
        """Names by label, for predictions: the dataset's where it is at hand, else numbers."""
        if self.predict is None or self._opened:
            return class_names(next(iter(self._opened.values()), None), self.num_classes)
        for train in (False, True):
            try:
                return class_names(self._open(train), self.num_classes)
            except InputError:
                continue
        return class_names(None, self.num_classes)

    def _split(self, part: str) -> SeededDataset:
        if part == "predict":
            return self._predict_split()
        from_train = part == "train" or (part == "val" and self.val_size > 0)
        whole = self._open(from_train)
        if not from_train:
            indices = self._test_images(whole)
        else:
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(mix_seed(self.seed, 1)))
            if self.val_size >= len(whole):
                raise InputError(
                    f"val_size must be below the number of training images, {len(whole)}, got {self.val_size}: leave "
                    f"some to train on"
                )
            held, rest = order[: self.val_size].tolist(), order[self.val_size :].tolist()
            indices = held if part == "val" else rest[: self.train_size or len(rest)]
        train = part == "train"
        augment = train and self.augment
        transform = self.info.transform(augment, self.image_size, self.augmentation)
        return SeededDataset(Subset(whole, indices), transform, random=augment)

    def _test_images(self, whole: Any) -> list[int]:
        size = min(self.test_size or len(whole), len(whole))
        if isinstance(whole, SynsetFolder):  # the first ones would all be of its first classes
            return [index * len(whole) // size for index in range(size)]
        return list(range(size))

    def _check_on_device(self) -> None:
        odd = [name for name in ("rand_augment", "erasing", "lighting") if getattr(self.augmentation, name)]
        if self.info.size > SMALL:
            raise InputError(
                f"images for data.on_device must be of at most {SMALL} pixels, got {self.dataset} of {self.info.size} "
                f"pixels: set it to false"
            )
        if odd:
            raise InputError(
                f"augmentation with data.on_device must be of whole batches, got {odd[0]}: set data.on_device to false"
            )

    def _keep(self, part: str) -> ResidentImages:
        """The images of a part, read once and kept."""
        if part not in self._resident:
            a = self.augmentation
            train = part == "train" and self.augment
            self._resident[part] = ResidentImages(
                self.splits[part].dataset,
                a.mean or self.info.mean,
                a.std or self.info.std,
                pad=padding(self.info.size) if train else 0,
                flip=a.flip if train else 0.0,
                size=self.image_size if self.image_size != self.info.size else None,
                mix=batch_mixture(a, self.num_classes) if train and a.mixes else None,
            )
        return self._resident[part]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: the images of a batch of keys."""
        if not isinstance(batch, Keys):
            return batch
        return self._keep(batch.part).batch(batch, batch.places.device)

    def _loader(self, part: str) -> DataLoader[Any]:
        data = self.splits[part]
        train = part == "train"
        augment = train and self.augment
        repeats = self.augmentation.repeats if augment else 1
        sampler = make_sampler(len(data), self.trainer, train=train, seed=self.seed, repeats=repeats)
        mixes = augment and self.augmentation.mixes
        items: Any = data
        if self.on_device and part != "predict":
            items = KeyBatches(len(data), part)
        elif mixes:
            items = MixedBatches(data, batch_mixture(self.augmentation, self.num_classes))
        return resumable_loader(
            items,
            sampler,
            drop_last=train and not overfits(self.trainer),
            seed=self.seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=as_it_is if mixes or items is not data else None,
            prefetch_factor=self.prefetch_factor,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by (seed, epoch), augmented by (seed, epoch, index), mixed by the batch's first item."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """In order, every image once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In order, every image once."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The user's folder, or the test split."""
        return self._loader("predict")
