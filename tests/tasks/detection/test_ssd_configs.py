"""The recipes of SSD300: their files fit together, and images reach the network as the original's do."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from esbnn_core.lit.recipes import read_recipe
from tasks.detection.data import VOCDataModule
from tasks.detection.mmdet import api as mm
from tests.helpers.detection.ssd300 import CONFIG, detector

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "tests" / "data" / "voc"
NAMES = ("bidet", "es_bidet", "bireal", "xnor", "real")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_model_and_pipeline_belong_together(name: str) -> None:
    recipe = read_recipe(ROOT / "configs" / "detection" / f"{name}_ssd300.yaml")
    assert recipe["model"]["model"] == CONFIG.format(name) and recipe["data"]["pipeline"].endswith("/voc_ssd300.py")
    steps, milestones = recipe["trainer"]["max_steps"], recipe["model"]["lr_scheduler"]["init_args"]["milestones"]
    assert recipe["model"]["lr_interval"] == "step" and steps > milestones[-1]
    assert (steps, milestones) == (
        (120_000, [80_000, 100_000]) if name == "real" else (300_000, [30_000, 80_000, 200_000])
    )
    model = mm.load_config(CONFIG.format(name)).to_dict()["model"]
    head = model["bbox_head"]
    assert (head["type"], head["num_classes"]) == ("BiDetSSDHead" if "bidet" in name else "SSDHead", 20)
    assert model["test_cfg"]["score_thr"] == 0.01 and model["test_cfg"]["nms"]["iou_threshold"] == 0.45
    assert model["test_cfg"]["max_per_img"] == 200
    if name != "real":
        assert model["backbone"]["type"].startswith("ES") is (name == "es_bidet")


def test_images_reach_the_network_as_rgb_less_the_mean() -> None:
    """Read as BGR, less (104, 117, 123) in that order, then turned to RGB, undivided."""
    bgr = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    preprocessor = detector("bidet").data_preprocessor
    sample = mm.DetDataSample(metainfo={"img_shape": (300, 300)})
    data = {"inputs": [torch.from_numpy(bgr).permute(2, 0, 1)], "data_samples": [sample]}
    got = preprocessor(data, training=False)["inputs"][0]
    want = (bgr.astype(np.float32) - np.array([104, 117, 123], np.float32))[..., ::-1].transpose(2, 0, 1)
    assert got.numpy().tolist() == want.tolist()


def batches(**options: Any) -> list[Any]:
    data = VOCDataModule(root=str(IMAGES), train=["VOC2007/train"], batch_size=2, **options)
    data.setup("fit")
    return [sample for batch in data.train_dataloader() for sample in zip(*batch.values(), strict=True)]


def test_augmented_images_are_300_wide_and_their_boxes_on_the_objects() -> None:
    """An untouched image comes out as a plain resize; across epochs an augmented one never comes out twice."""
    plain, one, other = batches(augment=False), batches(seed=1), batches(seed=2)
    assert len(plain) == len(one) > 4
    for inputs, sample in [*plain, *one, *other]:
        assert inputs.shape == (3, 300, 300)
        boxes = torch.as_tensor(getattr(sample.gt_instances.bboxes, "tensor", sample.gt_instances.bboxes))
        assert len(boxes) == len(sample.gt_instances.labels)
        assert bool((boxes >= 0).all()) and bool((boxes <= 300).all()) and bool((boxes[:, 2:] > boxes[:, :2]).all())
    inputs, sample = plain[0]
    want = cv2.resize(cv2.imread(sample.img_path), (300, 300), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(inputs.permute(1, 2, 0).numpy(), want)
    by_path = {sample.img_path: inputs for inputs, sample in one}
    assert all(not torch.equal(by_path[sample.img_path], inputs) for inputs, sample in other)
