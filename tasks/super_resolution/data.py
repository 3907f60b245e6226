"""SRDataModule: folders of HR images with LR made or read, in loaders that repeat exactly."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from esbnn_core.errors import InputError, check_at_least, check_choice, check_workers
from esbnn_core.lit.resumable import make_sampler, overfits, resumable_loader
from tasks.super_resolution.datasets import EvalItems, Item, TrainItems
from tasks.super_resolution.folders import Folder, Pair, read_images, read_set

FACTOR = 8
"""Sides are multiples of this, because the network halves its maps three times."""


class SRDataModule(L.LightningDataModule):
    """Super-resolution sets below one root, in the layouts of tasks.super_resolution.folders.

    Args:
        root: folder of the sets.
        train: sets, which are joined.
        val: sets, each evaluated by itself.
        test: sets, each evaluated by itself.
        images: a folder of LR images to predict on, default the sets of `test`.
        hr: a folder with the HR images of `images`.
        scale: the HR side over the LR side.
        patch: side of training patches in HR pixels, a multiple of 8 and of the scale.
        lr: "make" LR by MATLAB's bicubic, or "read" the files beside HR.
        repeat: patches of every image in a training epoch.
        batch_size: images per process and step.
        num_workers: loader processes; results do not depend on it.
        train_size: use the first so many training images only, 0 for all.
        test_size: likewise of every set of val and test.
        skip_bad: leave out images with a fault, and say how many and why.
        seed: of every epoch's order and every patch (linked to seed_everything on the command line).
        cache_mib: most memory for decoded training images in each loader process; results do not depend on it.

    A training batch is {"hr", "condition"}, float32 (N, 3, patch, patch): HR in [0, 1], and LR upsampled by OpenCV's
    bicubic, not clipped. Patches are turned and mirrored by the eight symmetries of the square. Any other batch is a
    list of at most batch_size Items of one set. Several sets make several loaders, named by `val_names`, `test_names`.

    Raises:
        InputError: at construction an option out of its range; at setup what tasks.super_resolution.folders refuses;
            in a loader an image whose pixels are damaged.
    """

    def __init__(
        self,
        root: str = "data/sr",
        train: Sequence[str] = ("DF2K",),
        val: Sequence[str] = ("Set5",),
        test: Sequence[str] = ("Set5", "B100", "Urban100", "Manga109"),
        images: str | None = None,
        hr: str | None = None,
        scale: int = 2,
        patch: int = 128,
        lr: Literal["make", "read"] = "make",
        repeat: int = 1,
        batch_size: int = 4,
        num_workers: int = 0,
        train_size: int = 0,
        test_size: int = 0,
        skip_bad: bool = False,
        seed: int = 0,
        cache_mib: int = 256,
    ) -> None:
        super().__init__()
        self.root, self.images, self.hr = os.path.expanduser(root), images, hr
        self.lists = {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
        self.scale, self.patch, self.lr, self.repeat = scale, patch, lr, repeat
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_size, self.test_size, self.skip_bad, self.cache_mib = train_size, test_size, skip_bad, cache_mib
        for part, names in self.lists.items():
            if not names or len(set(names)) != len(names):
                raise InputError(f"data.{part} must be one or several different sets, got {list(names)}")
        check_at_least(2, data__scale=scale)
        check_at_least(1, data__patch=patch, data__repeat=repeat, data__batch_size=batch_size)
        check_workers("data.num_workers", num_workers)
        check_at_least(0, data__train_size=train_size, data__test_size=test_size, data__cache_mib=cache_mib)
        check_choice("data.lr", lr, ("make", "read"))
        if hr is not None and images is None:
            raise InputError(
                f"data.hr must be given with data.images, got data.hr={hr} alone: name the images to predict on"
            )
        self.splits: dict[str, list[TrainItems] | list[EvalItems]] = {}
        self.skipped: dict[str, dict[str, str]] = {}

    @property
    def val_names(self) -> tuple[str, ...]:
        """Sets of the validation loaders."""
        return self.lists["val"]

    @property
    def test_names(self) -> tuple[str, ...]:
        """Sets of the test loaders."""
        return self.lists["test"]

    @property
    def predict_names(self) -> tuple[str, ...]:
        """Sets of the prediction loaders: the folder `images`, or those of `test`."""
        return self.test_names if self.images is None else (self.images,)

    def setup(self, stage: str | None = None) -> None:
        """Find, pair and check the files that the stage needs."""
        parts = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for part in parts[stage] if stage else ("train", "val", "test"):
            if part not in self.splits:
                self.splits[part] = [self._train_split()] if part == "train" else self._eval_splits(part)

    def _train_split(self) -> TrainItems:
        if self.patch % self.scale or self.patch % FACTOR:
            raise InputError(
                f"data.patch must be a multiple of {FACTOR} and of the scale {self.scale}, got {self.patch}"
            )
        pairs: list[Pair] = []
        for name in self.lists["train"]:
            pairs += self._read(name, self.patch)
        pairs = pairs[: self.train_size or len(pairs)]
        return TrainItems(pairs, self.scale, self.patch, self.repeat, self.cache_mib << 20)

    def _eval_splits(self, part: str) -> list[EvalItems]:
        if part == "predict" and self.images is not None:
            found = read_images(self.images, self.hr, self.scale, skip_bad=self.skip_bad)
            return [EvalItems(self._report_skipped(self.images, found), self.images, self.scale)]
        names = self.lists["test" if part == "predict" else part]
        return [EvalItems(self._read(name, 0)[: self.test_size or None], name, self.scale) for name in names]

    def _read(self, name: str, patch: int) -> list[Pair]:
        read_lr = self.lr == "read"
        found = read_set(self.root, name, self.scale, read_lr=read_lr, patch=patch, skip_bad=self.skip_bad)
        return self._report_skipped(name, found)

    def _report_skipped(self, name: str, found: Folder) -> list[Pair]:
        """The images of a set, after a line about those that were left out."""
        self.skipped[name] = found.skipped
        if found.skipped:
            whole = len(found.pairs) + len(found.skipped)
            first = next(iter(found.skipped.values()))
            rank_zero_info(f"{name}: {len(found.skipped):,} of {whole:,} images skipped, the first because {first}")
        return found.pairs

    def _loaders(self, part: str) -> list[DataLoader[Any]]:
        return [self._loader(items, part == "train") for items in self.splits[part]]

    def _loader(self, items: TrainItems | EvalItems, train: bool) -> DataLoader[Any]:
        sampler = make_sampler(len(items), self.trainer, train=train, seed=self.seed)
        return resumable_loader(
            items,
            sampler,
            drop_last=train and not overfits(self.trainer),
            seed=self.seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=None if train else list,
            pin_memory=train and torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by (seed, epoch), cut and turned by (seed, epoch, index)."""
        return self._loaders("train")[0]

    def val_dataloader(self) -> list[DataLoader[Item]]:
        """One for each set: in order, every image once."""
        return self._loaders("val")

    def test_dataloader(self) -> list[DataLoader[Item]]:
        """One for each set: in order, every image once."""
        return self._loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Item]]:
        """The folder's images by name, or the test sets."""
        return self._loaders("predict")
