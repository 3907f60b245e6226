"""VOCDataModule: image lists of a VOCdevkit folder through mmdet's transforms, in loaders that repeat exactly."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from esbnn_core.errors import InputError, check_at_least, check_workers
from esbnn_core.lit.data import seeded
from esbnn_core.lit.image_files import SUFFIXES, list_images, read_image_size
from esbnn_core.lit.resumable import make_sampler, overfits, resumable_loader
from tasks.detection import pipelines
from tasks.detection.annotations import VOC_CLASSES, Record, read_split
from tasks.detection.aspect_sampler import GroupedSampler

Batch = dict[str, list[Any]]
"""inputs: images uint8 or float (3, H, W) in BGR; data_samples: a DetDataSample each."""


class VOCDataModule(L.LightningDataModule):
    """PASCAL VOC, or any annotation in its form, below one VOCdevkit folder.

    Args:
        root: the VOCdevkit folder.
        train: image lists as YEAR/LIST, joined in their order.
        val: likewise.
        test: likewise.
        predict: a folder of images to predict on, default the images of `test`.
        pipeline: an mmdet config file with train_pipeline and test_pipeline, usually that of the model.
        augment: false trains on the images as they are evaluated.
        classes: names in the order of their labels, default VOC's 20.
        skip_bad: leave out images whose file or annotation has a fault, and say how many and why.
        drop_other_classes: leave out objects of classes that `classes` does not name, as mmdet does, and say how many.
        drop_empty: leave out training images without an object, which otherwise train as background.
        group_by_aspect: training batches of images that are all wide or all tall (tasks.detection.aspect_sampler): less
            padding if images keep their aspect.
        batch_size: images per process and step.
        num_workers: loader processes; results do not depend on it.
        train_size: use the first so many training images only, 0 for all.
        test_size: likewise of val and test.
        seed: of every epoch's order and every image's augmentation (linked to seed_everything on the command line).

    Raises:
        InputError: at construction an option out of its range; at setup whatever tasks.detection.annotations refuses.
    """

    def __init__(
        self,
        root: str = "data/VOCdevkit",
        train: Sequence[str] = ("VOC2007/trainval", "VOC2012/trainval"),
        val: Sequence[str] = ("VOC2007/test",),
        test: Sequence[str] = ("VOC2007/test",),
        predict: str | None = None,
        pipeline: str = "configs/detection/mmdet/voc_ssd300.py",
        augment: bool = True,
        classes: Sequence[str] = VOC_CLASSES,
        skip_bad: bool = False,
        drop_other_classes: bool = False,
        drop_empty: bool = False,
        group_by_aspect: bool = False,
        batch_size: int = 32,
        num_workers: int = 0,
        train_size: int = 0,
        test_size: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.predict, self.classes = os.path.expanduser(root), predict, tuple(classes)
        self.lists = {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
        self.skip_bad, self.drop_empty, self.augment = skip_bad, drop_empty, augment
        self.group_by_aspect, self.drop_other_classes = group_by_aspect, drop_other_classes
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_size, self.test_size = train_size, test_size
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise InputError(f"data.classes must be different names, got {list(classes)}")
        for part, names in self.lists.items():
            if not names:
                raise InputError(f"data.{part} must name at least one image list, e.g. VOC2007/trainval, got none")
        check_at_least(1, data__batch_size=batch_size)
        check_workers("data.num_workers", num_workers)
        check_at_least(0, data__train_size=train_size, data__test_size=test_size)
        self.train_pipeline, self.eval_pipeline = pipelines.read_pipelines(pipeline)
        if not augment:
            self.train_pipeline = pipelines.drop_augmentation(self.train_pipeline, self.eval_pipeline)
        self.splits: dict[str, DetectionItems] = {}
        self.skipped: dict[str, dict[str, str]] = {}

    @property
    def num_classes(self) -> int:
        """Classes without the background."""
        return len(self.classes)

    def setup(self, stage: str | None = None) -> None:
        """Read and check every annotation that the stage needs."""
        parts = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        for part in parts[stage] if stage else ("train", "val", "test"):
            if part not in self.splits:
                self.splits[part] = self._split(part)

    def _split(self, part: str) -> "DetectionItems":
        train = part == "train"
        limit = self.train_size if train else self.test_size
        if part == "predict" and self.predict is not None:
            records, limit = _folder_records(Path(self.predict)), 0
        else:
            records = self._records("test" if part == "predict" else part)
        if train and self.drop_empty:
            kept = [record for record in records if any(not i["ignore_flag"] for i in record["instances"])]
            rank_zero_info(f"train: {len(records) - len(kept):,} of {len(records):,} images without an object left out")
            records = kept
        records = records[: limit or len(records)]
        if not records:
            raise InputError(f"the images of {', '.join(self.lists[part])} have no object: set data.drop_empty false")
        composed = pipelines.compose(self.train_pipeline if train else self.eval_pipeline)
        return DetectionItems(records, composed, random=train and self.augment)

    def _records(self, part: str) -> list[Record]:
        records: list[Record] = []
        several = len({name.partition("/")[0] for name in self.lists[part]}) > 1
        for name in self.lists[part]:
            split = read_split(self.root, name, self.classes, self.skip_bad, self.drop_other_classes)
            if several:  # an image is known by its folder and its name: two years may both have a 000001
                split.records = [{**r, "img_id": f"{name.partition('/')[0]}/{r['img_id']}"} for r in split.records]
            records += split.records
            if split.other_objects:
                named = ", ".join(f"{number:,} {other}" for other, number in split.other_objects.most_common(5))
                rank_zero_info(f"{name}: {split.other_objects.total():,} objects of other classes left out ({named})")
            self.skipped[name] = split.skipped
            if split.skipped:
                whole = len(split.records) + len(split.skipped)
                first = next(iter(split.skipped.values()))
                rank_zero_info(f"{name}: {len(split.skipped):,} of {whole:,} images skipped, the first because {first}")
        twice = [name for name, number in Counter(record["img_id"] for record in records).items() if number > 1]
        if twice and part != "train":
            raise InputError(
                f"data.{part} must name every image once, got {twice[0]} more than once in "
                f"{', '.join(self.lists[part])}: take it out of the others"
            )
        return records

    def _loader(self, part: str) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        train = part == "train"
        sampler = make_sampler(len(self.splits[part]), self.trainer, train=train, seed=self.seed)
        drop_last = train and not overfits(self.trainer)
        if drop_last and self.group_by_aspect:
            wide = [int(record["width"] >= record["height"]) for record in self.splits[part].records]
            sampler = GroupedSampler(wide, self.batch_size, seed=self.seed, rank=rank, world=world)
            drop_last = False  # the rest of the groups comes last in every epoch: an image alone in its group is there
        return resumable_loader(
            self.splits[part],
            sampler,
            drop_last=drop_last,
            seed=self.seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=_single_thread,
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
        """The folder's images by name, or the test list."""
        return self._loader("predict")


class DetectionItems(Dataset[dict[str, Any]]):
    """Records through a pipeline, each with a seed of its own; the key of an item is EpochSampler's (index, seed).

    An item is {"inputs", "data_samples"}. A padded one (index -1, see EpochSampler) is the first image again with
    `padded` in its metainfo, which scoring leaves out.
    """

    def __init__(self, records: list[Record], pipeline: Any, random: bool) -> None:
        self.records, self.pipeline, self.random = records, pipeline, random

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        # a copy, because mmdet's transforms write into their argument
        record = {**self.records[max(index, 0)], "sample_idx": max(index, 0)}
        record["instances"] = [dict(instance) for instance in record["instances"]]
        try:
            if self.random:
                with seeded(seed):
                    item: dict[str, Any] = self.pipeline(record)
            else:
                item = self.pipeline(record)
        except (OSError, AssertionError, AttributeError, cv2.error) as error:
            if isinstance(error, OSError) or not _opens(record["img_path"]):
                read_image_size(record["img_path"])  # says more of a file that is not there or cut off
                raise InputError(
                    f"image {record['img_path']} cannot be read by OpenCV, it is damaged or of a kind that OpenCV does "
                    f"not know: convert it to PNG or take it out"
                ) from error
            raise
        found = tuple(item["data_samples"].metainfo.get("ori_shape", ()))[:2]
        if found and found != (record["height"], record["width"]):
            raise InputError(
                f"image {record['img_path']} must have {record['width']}x{record['height']} pixels as its header says, "
                f"got {found[1]}x{found[0]}: replace it or take it out"
            )
        item["data_samples"].set_metainfo({"padded": index < 0})
        return item


def _opens(path: str) -> bool:
    """Whether OpenCV reads an image. Of a damaged one it gives None, or raises where it takes it for too large."""
    try:
        return cv2.imread(path) is not None
    except cv2.error:
        return False


def collate(items: list[dict[str, Any]]) -> Batch:
    """A batch of lists, not stacks, because images differ in size and the detector pads them."""
    return {key: [item[key] for item in items] for key in ("inputs", "data_samples")}


def _single_thread(worker: int) -> None:
    """Keep OpenCV from starting a thread for each core in every worker."""
    cv2.setNumThreads(0)


def _folder_records(folder: Path) -> list[Record]:
    """A record without objects for every image in a folder, by name. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist: set data.predict to a folder of images")
    paths = list_images(folder, report_others=True)
    if not paths:
        raise InputError(f"folder {folder} has no image ({', '.join(SUFFIXES[:3])}, ...): set data.predict")
    records: list[Record] = []
    stems = [path.stem for path in paths]
    for path in paths:
        if stems.count(path.stem) > 1:
            raise InputError(
                f"folder {folder} has two images named {path.stem}: rename one, because predictions take the name"
            )
    for path in paths:
        width, height = read_image_size(path)
        records.append({"img_id": path.stem, "img_path": str(path), "height": height, "width": width, "instances": []})
    return records
