"""Batches of one aspect: mmdet's own grouping, every item once, the same after an interruption and over processes."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from mmdet.datasets.samplers import AspectRatioBatchSampler
from PIL import Image
from torch.utils.data import Sampler

from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.data import EpochSampler
from esbnn_core.lit.resumable import ResumableLoader
from tasks.detection.aspect_sampler import GroupedSampler
from tasks.detection.data import DetectionItems, VOCDataModule
from tests.helpers.detection.tiny import make_detector


class Order(Sampler[int]):
    """Indices in the order of an EpochSampler, with what mmdet's sampler asks its dataset for."""

    def __init__(self, wide: list[int], **options: Any) -> None:
        self.indices = [index for index, _ in EpochSampler(len(wide), shuffle=True, **options)]
        self.dataset = SimpleNamespace(get_data_info=lambda i: {"width": 1 + wide[i], "height": 2})

    def __iter__(self) -> Any:
        return iter(self.indices)


def sides(number: int) -> list[int]:
    return torch.randint(0, 2, (number,), generator=torch.Generator().manual_seed(number)).tolist()


@pytest.mark.parametrize(("number", "batch_size", "world"), [(23, 4, 1), (40, 3, 1), (29, 4, 3), (5, 8, 2)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_those_of_mmdet(number: int, batch_size: int, world: int, drop_last: bool) -> None:
    wide = sides(number)
    seen: list[int] = []
    for rank in range(world):
        sampler = GroupedSampler(wide, batch_size, seed=3, rank=rank, world=world)
        loader = ResumableLoader(range(number), batch_size, sampler=sampler, drop_last=drop_last, collate_fn=list)
        keys = list(torch.utils.data.BatchSampler(sampler, batch_size, drop_last))
        want = list(AspectRatioBatchSampler(Order(wide, seed=3, rank=rank, world=world), batch_size, drop_last))
        assert [[index for index, _ in batch] for batch in keys] == want
        assert len(loader) == len(want)
        # an item keeps the seed that it has without groups
        assert {key for batch in keys for key in batch} <= set(
            EpochSampler(number, shuffle=True, seed=3, rank=rank, world=world)
        )
        assert sum(len({wide[index] for index in batch}) > 1 for batch in want) <= 1
        seen += [index for batch in want for index in batch]
    assert drop_last or set(seen) == set(range(number))


class Keys(torch.utils.data.Dataset[tuple[int, int]]):
    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_with_the_batches_left(workers: int) -> None:
    def loader() -> ResumableLoader:
        sampler = GroupedSampler(sides(30), 4, seed=1)
        sampler.set_epoch(5)
        return ResumableLoader(Keys(), 4, sampler=sampler, num_workers=workers, collate_fn=list)

    whole = list(loader())
    first, second = loader(), loader()
    batches = iter(first)
    assert [next(batches) for _ in range(3)] == whole[:3]
    second.load_state_dict(first.state_dict())
    assert list(second) == whole[3:]
    assert list(second) == whole  # the epoch after it is a whole one


def test_images_of_a_batch_are_all_wide_or_all_tall(tmp_path: Path, make_voc: Callable[..., VOCDataModule]) -> None:
    """12 images of which 4 are tall: no batch of two is mixed, whatever the epoch; evaluation keeps its order."""

    def mixed(group: bool) -> list[int]:
        data = make_voc(group_by_aspect=group, augment=False, train=["VOC2007/train", "VOC2007/test"])
        data.setup("fit")
        records = data.splits["train"].records
        for record in records[3:6]:  # the third is tall, these are turned
            with Image.open(record["img_path"]) as image:
                turned = image.transpose(Image.Transpose.ROTATE_90) if image.width > image.height else image.copy()
            record["img_path"], record["instances"] = str(tmp_path / f"{record['img_id'][-6:]}.png"), []
            turned.save(record["img_path"])
            record["width"], record["height"] = turned.size
        tall = {record["img_id"] for record in records if record["width"] < record["height"]}
        assert len(tall) == 4
        loader = data.train_dataloader()
        found = []
        for epoch in range(6):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            names = [[s.metainfo["img_id"] for s in batch["data_samples"]] for batch in loader]
            assert [len(batch) for batch in names] == [2] * 6
            found.append(sum(len({name in tall for name in batch}) > 1 for batch in names))
        order = [s.metainfo["img_id"] for batch in data.val_dataloader() for s in batch["data_samples"]]
        assert order == ["000243", "004774", "005642", "008257"]
        return found

    assert not any(mixed(True)) and any(mixed(False))


def test_a_grouped_run_resumes_exactly(
    tmp_path: Path, make_voc: Callable[..., VOCDataModule], make_trainer: Callable[..., L.Trainer]
) -> None:
    def fit(source: str | None = None, **options: Any) -> Any:
        trained = make_detector()
        data = make_voc(group_by_aspect=True, train=["VOC2007/train", "VOC2007/test"])
        trainer = make_trainer(max_epochs=1, limit_val_batches=0, **options)
        trainer.fit(trained, data, ckpt_path=source)
        return trained.state_dict()

    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
    whole = fit(enable_checkpointing=True, callbacks=[EpochSeed(0), keep])
    again = fit(str(tmp_path / "step=4.ckpt"))
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


class Numbers(DetectionItems):
    """Items that are the place of their image."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return key[0]


@pytest.mark.parametrize(
    ("wide", "world", "sizes", "counts"),
    [
        ([1, *[0] * 8], 1, [4, 4, 1], [3] * 9),  # one image of its aspect
        ([1] * 3 + [0] * 4, 1, [4, 3], [3] * 7),
        ([1] * 7, 1, [4, 3], [3] * 7),
        ([1] * 7 + [0], 2, [4], [3] * 8),
        ([1, *[0] * 9], 2, [4, 1], [3] * 10),
    ],
)
def test_every_image_is_in_every_epoch(
    make_voc: Callable[..., VOCDataModule], wide: list[int], world: int, sizes: list[int], counts: list[int]
) -> None:
    found: Counter[int] = Counter()
    for rank in range(world):
        data = make_voc(group_by_aspect=True, batch_size=4)
        records = [{"img_path": "x", "width": 1 + flag, "height": 2, "instances": []} for flag in wide]
        data.splits["train"] = Numbers(records, None, random=False)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, overfit_batches=0.0)  # type: ignore[assignment]
        loader = data.train_dataloader()
        loader.collate_fn = list
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches = list(loader)
            assert [len(batch) for batch in batches] == sizes and len(loader) == len(sizes)
            found.update(index for batch in batches for index in batch)
    assert [found[index] for index in range(len(wide))] == counts
