"""Average precision of detections: VOC's in both modes by mmdet's own functions, COCO's by pycocotools.

The published rows are VOC07's: 11 recall points, IoU 0.5, difficult objects ignored (papers.md#bidet-ssd,
#bidet-faster-rcnn).
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from esbnn_core.lit.distributed import from_all_processes
from tasks.detection.mmdet.api import DetDataSample, eval_map

Array = Any
"""A numpy array."""


@dataclass(frozen=True)
class ImageResult:
    """One image: its objects, those to be ignored, and the detections. Corners x1, y1, x2, y2 in its own pixels from 0.

    Attributes:
        identity: of the image.
        height: in pixels.
        width: in pixels.
        boxes: (G, 4) float32, objects.
        labels: (G,).
        ignored_boxes: (I, 4) float32, difficult objects.
        ignored_labels: (I,).
        found_boxes: (D, 4) float32, detections.
        found_labels: (D,).
        scores: (D,) float32.
    """

    identity: str
    height: int
    width: int
    boxes: Array
    labels: Array
    ignored_boxes: Array
    ignored_labels: Array
    found_boxes: Array
    found_labels: Array
    scores: Array


@dataclass(frozen=True)
class ClassScores:
    """One class.

    Attributes:
        name: of the class.
        objects: that count.
        found: detections.
        ap_11point: AP by 11 points in percent, nan for a class without objects.
        ap_area: AP by area in percent, nan for a class without objects.
    """

    name: str
    objects: int
    found: int
    ap_11point: float
    ap_area: float


@dataclass(frozen=True)
class Scores:
    """All numbers of an evaluation, in percent: means over the classes that have objects.

    Attributes:
        images: scored.
        map_11point: VOC's by 11 points at IoU 0.5.
        map_area: VOC's by area at IoU 0.5.
        coco: COCO's over IoU 0.5 to 0.95.
        coco50: COCO's at IoU 0.5.
        coco75: COCO's at IoU 0.75.
        rows: of the classes.
    """

    images: int
    map_11point: float
    map_area: float
    coco: float
    coco50: float
    coco75: float
    rows: tuple[ClassScores, ...]

    def table(self) -> str:
        """The classes and the means as aligned text."""
        head = f"{'class':<16}{'objects':>9}{'detections':>12}{'AP 11-point':>13}{'AP area':>10}"
        lines = [head]
        for row in self.rows:
            points, area = (f"{v:.1f}" if v == v else "-" for v in (row.ap_11point, row.ap_area))
            lines.append(f"{row.name:<16}{row.objects:>9,}{row.found:>12,}{points:>13}{area:>10}")
        objects, found = sum(row.objects for row in self.rows), sum(row.found for row in self.rows)
        lines.append(f"{'mean':<16}{objects:>9,}{found:>12,}{self.map_11point:>13.1f}{self.map_area:>10.1f}")
        lines.append(
            f"{self.images:,} images; VOC mAP {self.map_11point:.1f} by 11 points (VOC07, the published rows), "
            f"{self.map_area:.1f} by area; COCO mAP {self.coco:.1f}, at IoU 0.5 {self.coco50:.1f}, at 0.75 "
            f"{self.coco75:.1f}"
        )
        return "\n".join(lines)


def collect(samples: Sequence[DetDataSample]) -> list[ImageResult]:
    """The results of a batch of predictions, without padded images (see tasks.detection.data)."""
    return [_read_sample(sample) for sample in samples if not sample.metainfo.get("padded", False)]


def collect_from_all(found: list[ImageResult]) -> list[ImageResult]:
    """The results of every process of a distributed run, sorted by identity; all processes get them."""
    return sorted(from_all_processes(found), key=lambda image: image.identity)


def score(found: Sequence[ImageResult], classes: Sequence[str]) -> Scores:
    """Average precision over images; 0 if nothing was detected or if there is no object at all."""
    points, areas = _score_voc(found, classes, "11points"), _score_voc(found, classes, "area")
    rows = tuple(
        ClassScores(
            name,
            int(a["num_gts"]),
            int(a["num_dets"]),
            *(100 * float(part["ap"]) if a["num_gts"] else float("nan") for part in (a, b)),
        )
        for name, a, b in zip(classes, points, areas, strict=True)
    )
    means = []
    for values in ([row.ap_11point for row in rows], [row.ap_area for row in rows]):
        counted = [value for value in values if value == value]
        means.append(sum(counted) / len(counted) if counted else 0.0)
    return Scores(len(found), *means, *score_coco(found, classes), rows)


def score_coco(found: Sequence[ImageResult], classes: Sequence[str]) -> tuple[float, float, float]:
    """COCO's mAP over IoU 0.5:0.95, at 0.5 and at 0.75, in percent, of at most 100 detections an image.

    Difficult objects are given as COCO's crowds, the only kind that its own evaluation ignores.
    """
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": f.height, "width": f.width} for i, f in enumerate(found, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": [],
    }
    for i, image in enumerate(found, 1):
        for boxes, labels, crowd in (
            (image.boxes, image.labels, 0),
            (image.ignored_boxes, image.ignored_labels, 1),
        ):
            for box, label in zip(boxes, labels, strict=True):
                corner_size = _corner_and_size(box)
                truth["annotations"].append(
                    {
                        "id": len(truth["annotations"]) + 1,
                        "image_id": i,
                        "category_id": int(label),
                        "bbox": corner_size,
                        "area": corner_size[2] * corner_size[3],
                        "iscrowd": crowd,
                    }
                )
    results = coco_results(found, {image.identity: i for i, image in enumerate(found, 1)})
    if not results or not any(not annotation["iscrowd"] for annotation in truth["annotations"]):
        return 0.0, 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    whole, half, three_quarters = (100 * max(0.0, float(value)) for value in evaluation.stats[:3])
    return whole, half, three_quarters


def coco_results(found: Sequence[ImageResult], identities: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections as COCO's result list: image_id, category_id (the label), bbox (x, y, width, height), score."""
    return [
        {
            "image_id": identities[image.identity],
            "category_id": int(label),
            "bbox": _corner_and_size(box),
            "score": float(value),
        }
        for image in found
        for box, label, value in zip(image.found_boxes, image.found_labels, image.scores, strict=True)
    ]


def _read_sample(sample: DetDataSample) -> ImageResult:
    def numbers(tensor: Any) -> Array:
        return getattr(tensor, "tensor", tensor).detach().float().cpu().numpy()

    truth, ignored, found = sample.gt_instances, sample.ignored_instances, sample.pred_instances
    height, width = sample.metainfo["ori_shape"][:2]
    return ImageResult(
        *(str(sample.metainfo["img_id"]), int(height), int(width)),
        *(numbers(truth.bboxes).reshape(-1, 4), numbers(truth.labels).astype(int)),
        *(numbers(ignored.bboxes).reshape(-1, 4), numbers(ignored.labels).astype(int)),
        *(numbers(found.bboxes).reshape(-1, 4), numbers(found.labels).astype(int), numbers(found.scores)),
    )


def _score_voc(found: Sequence[ImageResult], classes: Sequence[str], mode: str) -> list[dict[str, Any]]:
    """mmdet's result of each class, called as by its VOCMetric: corners are pixels inside the box."""
    truth = [
        {
            "bboxes": image.boxes,
            "labels": image.labels,
            "bboxes_ignore": image.ignored_boxes,
            "labels_ignore": image.ignored_labels,
        }
        for image in found
    ]
    detected = [
        [
            np.hstack([image.found_boxes, image.scores[:, None]])[image.found_labels == label]
            for label in range(len(classes))
        ]
        for image in found
    ]
    results: list[dict[str, Any]] = eval_map(
        *(detected, truth), iou_thr=0.5, logger="silent", use_legacy_coordinate=True, eval_mode=mode
    )[1]
    return results


def _corner_and_size(box: Array) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
