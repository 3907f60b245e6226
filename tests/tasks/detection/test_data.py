"""The data module: boxes follow their images, draws belong to (seed, epoch, index), every image counts once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core.errors import InputError
from tasks.detection.data import VOCDataModule, collate
from tests.helpers.detection.tiny import EMBEDDED, TINY
from tests.helpers.log import Log

MakeVoc = Callable[..., VOCDataModule]


def batches(data: VOCDataModule, epoch: int = 0) -> list[Any]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(s.gt_instances.bboxes.tensor, t.gt_instances.bboxes.tensor)
        for one, two in zip(a, b, strict=True)
        for x, y, s, t in zip(one["inputs"], two["inputs"], one["data_samples"], two["data_samples"], strict=True)
    )


def test_augmentation_belongs_to_seed_epoch_and_image(make_voc: MakeVoc) -> None:
    first = batches(make_voc())
    torch.manual_seed(7)
    assert equal(first, batches(make_voc()))
    assert equal(first, batches(make_voc(num_workers=2)))
    assert not equal(first, batches(make_voc(), epoch=1))
    assert not equal(first, batches(make_voc(seed=1)))
    data = make_voc()
    data.setup("fit")
    one, again, other = (collate([data.splits["train"][3, seed]]) for seed in (5, 5, 6))
    assert equal([one], [again]) and not equal([one], [other])


def test_boxes_follow_the_resize_in_training_and_stay_in_evaluation(make_voc: MakeVoc) -> None:
    data = make_voc(augment=False, train=["VOC2007/test"])
    data.setup("fit")
    train = {s.metainfo["img_id"]: s for b in data.train_dataloader() for s in b["data_samples"]}
    for batch in data.val_dataloader():
        for sample in batch["data_samples"]:
            height, width = sample.metainfo["ori_shape"]
            scale = torch.tensor([64 / width, 64 / height, 64 / width, 64 / height])
            whole = sample.gt_instances.bboxes.tensor
            small = train[sample.metainfo["img_id"]].gt_instances.bboxes.tensor
            assert torch.allclose(small, whole * scale, atol=1e-4) and len(whole) > 0


def test_difficult_objects_are_kept_apart(make_voc: MakeVoc) -> None:
    data = make_voc(augment=False)
    data.setup("fit")
    samples = {s.metainfo["img_id"]: s for b in data.train_dataloader() for s in b["data_samples"]}
    assert len(samples) == 8
    both = samples["003591"]
    assert both.gt_instances.labels.tolist() == [15] and both.ignored_instances.labels.tolist() == [7]


@pytest.mark.parametrize("world", [1, 3])
def test_every_image_counts_once_over_all_processes(make_voc: MakeVoc, world: int) -> None:
    seen: list[str] = []
    for rank in range(world):
        data = make_voc()
        data.setup("test")
        data.trainer = type("Trainer", (), {"global_rank": rank, "world_size": world})()
        for batch in data.test_dataloader():
            seen += [s.metainfo["img_id"] for s in batch["data_samples"] if not s.metainfo["padded"]]
    assert sorted(seen) == ["000243", "004774", "005642", "008257"]


def test_skip_bad_reports_and_drop_empty_drops(voc: Path, make_voc: MakeVoc, caplog: Log) -> None:
    (voc / "VOC2007/Annotations/000521.xml").write_text("")
    (voc / "VOC2007/Annotations/000351.xml").write_text("<annotation/>")
    with pytest.raises(InputError, match=r"000521\.xml is an empty file"):
        make_voc(root=str(voc)).setup("fit")
    data = make_voc(root=str(voc), skip_bad=True)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert list(data.skipped["VOC2007/train"]) == ["000521"] and len(data.splits["train"]) == 7
    assert "VOC2007/train: 1 of 8 images skipped, the first because annotation" in caplog.text
    fewer = make_voc(root=str(voc), skip_bad=True, drop_empty=True)
    fewer.setup("fit")
    assert len(fewer.splits["train"]) == 6 and len(fewer.splits["val"]) == 4


def test_lists_are_joined_and_limited(make_voc: MakeVoc) -> None:
    data = make_voc(train=["VOC2007/train", "VOC2007/test"], test_size=3)
    data.setup("fit")
    assert len(data.splits["train"]) == 12 and len(data.splits["val"]) == 3


def test_predict_takes_a_folder_or_the_test_list(make_voc: MakeVoc, tmp_path: Path) -> None:
    data = make_voc()
    data.setup("predict")
    assert len(data.splits["predict"]) == 4
    folder = make_voc(predict=str(EMBEDDED / "VOC2007" / "JPEGImages"), test_size=2)
    folder.setup("predict")
    assert len(folder.splits["predict"]) == 12
    for path, sentence in ((tmp_path, "has no image"), (tmp_path / "none", "does not exist")):
        with pytest.raises(InputError, match=sentence):
            make_voc(predict=str(path)).setup("predict")
    source = (EMBEDDED / "VOC2007/JPEGImages/000243.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(source)
    (tmp_path / "a.jpeg").write_bytes(source)
    with pytest.raises(InputError, match="two images named a"):
        make_voc(predict=str(tmp_path)).setup("predict")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "data.batch_size must be a whole number of at least 1, got 0"),
        ({"train": []}, "data.train must name at least one image list"),
        ({"classes": ["dog", "dog"]}, "must be different names"),
        ({"pipeline": "none.py"}, "config none.py does not exist"),
        ({"root": "nowhere"}, "nowhere has no folder VOC2007"),
    ],
)
def test_wrong_options_are_one_sentence(make_voc: MakeVoc, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_voc(**options).setup("fit")


def test_a_pipeline_that_mmdet_does_not_know_is_one_sentence(tmp_path: Path, make_voc: MakeVoc) -> None:
    path = tmp_path / "config.py"
    path.write_text(Path(TINY).read_text().replace('"RandomFlip", "prob"', '"RandomFlop", "prob"'))
    with pytest.raises(InputError, match="transform RandomFlop of the pipeline cannot be built"):
        make_voc(pipeline=str(path)).setup("fit")
    path.write_text("model = None\n")
    with pytest.raises(InputError, match="has no train_pipeline"):
        make_voc(pipeline=str(path))
