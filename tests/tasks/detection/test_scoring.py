"""VOC's mAP in both modes and COCO's: closed forms, mmdet's VOCMetric, torchmetrics."""

from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from tasks.detection.annotations import VOC_CLASSES
from tasks.detection.mmdet import api as mm
from tasks.detection.scoring import ImageResult, coco_results, collect, score

CLASSES = ("cat", "dog", "cow")
NONE: tuple[Any, Any] = (np.zeros((0, 4), np.float32), np.zeros(0, int))


def image(
    name: str, objects: tuple[Any, Any] = NONE, found: Any = NONE, scores: Any = (), ignored: tuple[Any, Any] = NONE
) -> ImageResult:
    parts = [(np.asarray(b, np.float32).reshape(-1, 4), np.asarray(k, int)) for b, k in (objects, ignored, found)]
    return ImageResult(name, 100, 100, *parts[0], *parts[1], *parts[2], np.asarray(scores, np.float32))


A, B, C = [10, 10, 40, 40], [50, 50, 90, 90], [5, 60, 30, 95]


def test_perfect_detections_score_100_and_none_score_0() -> None:
    objects = ([A, B], [0, 1])
    whole = score([image("a", objects, objects, (0.9, 0.8)), image("b")], CLASSES)
    assert whole.map_11point == pytest.approx(100) and whole.map_area == pytest.approx(100)
    assert whole.coco == pytest.approx(100) and whole.images == 2
    nothing = score([image("a", objects), image("b")], CLASSES)
    assert (nothing.map_11point, nothing.map_area, nothing.coco) == (0, 0, 0)
    empty = score([image("a", NONE, ([A], [0]), (0.9,)), image("b")], CLASSES)
    assert (empty.map_11point, empty.map_area, empty.coco) == (0, 0, 0)


def test_one_of_two_objects_behind_one_mistake_by_hand() -> None:
    # cat: a false positive at 0.9, then one of two objects at 0.8: precision 1/2 up to recall 1/2
    found = score([image("a", ([A, B], [0, 0]), ([C, A], [0, 0]), (0.9, 0.8))], CLASSES)
    row = found.rows[0]
    assert (row.name, row.objects, row.found) == ("cat", 2, 2)
    assert row.ap_11point == pytest.approx(100 * 6 * 0.5 / 11)  # recalls 0, 0.1 .. 0.5
    assert row.ap_area == pytest.approx(100 * 0.25)
    assert found.rows[1].ap_area != found.rows[1].ap_area  # nan: no dog, and no part of the mean
    assert found.map_11point == row.ap_11point


def test_difficult_objects_neither_count_nor_harm() -> None:
    with_difficult = score([image("a", ([A], [0]), ([A, B], [0, 0]), (0.8, 0.9), ignored=([B], [0]))], CLASSES)
    assert with_difficult.map_11point == pytest.approx(100) and with_difficult.coco == pytest.approx(100)
    assert with_difficult.rows[0].objects == 1
    missed = score([image("a", ([A], [0]), ([A], [0]), (0.8,), ignored=([B], [0]))], CLASSES)
    assert missed.map_11point == pytest.approx(100) and missed.coco == pytest.approx(100)
    counted = score([image("a", ([A], [0]), ([A, B], [0, 0]), (0.8, 0.9))], CLASSES)
    assert counted.map_area == pytest.approx(50)


def noisy(seed: int, number: int = 12) -> list[ImageResult]:
    """Images with objects of VOC's classes, detections near some of them, misses and inventions."""
    draw = np.random.default_rng(seed)
    images = []
    for i in range(number):
        count = int(draw.integers(0, 5))
        corners = draw.uniform(0, 50, (count, 2))
        boxes = np.hstack([corners, corners + draw.uniform(10, 45, (count, 2))])
        labels = draw.integers(0, 4, count)
        near = np.vstack([boxes + draw.normal(0, 4, boxes.shape), boxes + draw.normal(0, 12, boxes.shape)])
        kinds = np.hstack([labels, draw.integers(0, 4, count)])
        images.append(image(f"{i:03}", (boxes, labels), (near, kinds), draw.uniform(0, 1, 2 * count)))
    return images


@pytest.mark.filterwarnings("ignore:Pascal VOC2007 uses")
@pytest.mark.parametrize("seed", [0, 1])
def test_voc_means_are_those_of_mmdets_metric(seed: int) -> None:
    images = noisy(seed)
    ours = score(images, VOC_CLASSES)
    for mode, mean in (("11points", ours.map_11point), ("area", ours.map_area)):
        metric: Any = mm.METRICS.build({"type": "VOCMetric", "eval_mode": mode})
        metric.dataset_meta = {"classes": VOC_CLASSES, "dataset_type": "VOC2007"}

        def instances(boxes: Any, labels: Any) -> dict[str, Any]:
            return {"bboxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}

        for f in images:
            found = {**instances(f.found_boxes, f.found_labels), "scores": torch.from_numpy(f.scores)}
            sample = {"gt_instances": instances(f.boxes, f.labels), "pred_instances": found}
            sample["ignored_instances"] = instances(f.ignored_boxes, f.ignored_labels)
            metric.process({}, [sample])
        assert 100 * metric.evaluate(len(images))["pascal_voc/mAP"] == pytest.approx(mean)
        assert 1 < mean < 99
    assert ours.map_11point != ours.map_area


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_cocos_means_are_those_of_torchmetrics(seed: int) -> None:
    images = noisy(seed)
    # its own thresholds are rounded to float32: a recall of 1/10 then misses the point 0.1
    recalls, overlaps = np.linspace(0, 1, 101).tolist(), np.linspace(0.5, 0.95, 10).tolist()
    metric = MeanAveragePrecision(rec_thresholds=recalls, iou_thresholds=overlaps)
    for f in images:
        metric.update(
            [
                {
                    "boxes": torch.from_numpy(f.found_boxes),
                    "labels": torch.from_numpy(f.found_labels),
                    "scores": torch.from_numpy(f.scores),
                }
            ],
            [{"boxes": torch.from_numpy(f.boxes), "labels": torch.from_numpy(f.labels)}],
        )
    theirs, ours = metric.compute(), score(images, VOC_CLASSES)
    assert ours.coco == pytest.approx(100 * theirs["map"].item(), abs=1e-4) and ours.coco > 1
    assert ours.coco50 == pytest.approx(100 * theirs["map_50"].item(), abs=1e-4)
    assert ours.coco75 == pytest.approx(100 * theirs["map_75"].item(), abs=1e-4)


def test_gather_takes_real_images_alone_and_numbers_of_any_precision() -> None:
    def sample(padded: bool) -> Any:
        one = mm.DetDataSample(metainfo={"img_id": "x", "ori_shape": (30, 40), "padded": padded})
        one.gt_instances = mm.InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        one.ignored_instances = one.gt_instances.clone()
        one.pred_instances = mm.InstanceData(
            bboxes=torch.tensor([[1.0, 2, 3, 5]]).bfloat16(), labels=torch.tensor([2]), scores=torch.tensor([0.5])
        )
        return one

    (found,) = collect([sample(False), sample(True)])
    assert (found.identity, found.height, found.width) == ("x", 30, 40) and found.boxes.shape == (0, 4)
    assert coco_results([found], {"x": 7}) == [
        {"image_id": 7, "category_id": 2, "bbox": [1.0, 2.0, 2.0, 3.0], "score": 0.5}
    ]


def test_the_table_has_a_line_for_each_class_and_dashes_where_there_is_no_object() -> None:
    lines = score([image("a", ([A], [1]), ([A], [1]), (0.9,))], CLASSES).table().splitlines()
    assert [line.split()[0] for line in lines] == ["class", "cat", "dog", "cow", "mean", "1"]
    assert lines[1].split() == ["cat", "0", "0", "-", "-"] and lines[2].split() == ["dog", "1", "1", "100.0", "100.0"]
