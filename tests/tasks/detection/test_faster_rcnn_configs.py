"""The recipes of Faster R-CNN: their files fit together, images reach the network as in the original, known costs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esbnn_core.lit.recipes import read_recipe
from tasks.detection.cost import count_detector
from tasks.detection.data import VOCDataModule
from tasks.detection.mmdet.api import DetDataSample, build
from tasks.detection.models.bottleneck import Bottleneck
from tasks.detection.models.coder import MeanVarianceCoder
from tasks.detection.module import model_config
from tests.helpers.detection.faster_rcnn import CONFIGS, NAMES, made

ROOT = Path(__file__).parents[3]
PIPELINE = "configs/detection/mmdet/voc_faster_rcnn_r18.py"


@pytest.mark.parametrize("name", NAMES)
def test_recipe_and_model_belong_together(name: str) -> None:
    recipe = read_recipe(ROOT / "configs" / "detection" / f"{name}_faster_rcnn_r18.yaml")
    assert (ROOT / recipe["model"]["model"]) == CONFIGS / f"{name}_faster_rcnn_r18.py"
    assert (recipe["data"]["pipeline"], recipe["data"]["group_by_aspect"]) == (PIPELINE, True)
    schedule = recipe["model"]["lr_scheduler"]["init_args"]
    assert (recipe["trainer"]["max_epochs"], recipe["model"]["lr_interval"]) == (12, "epoch")
    assert schedule == {"milestones": [9] if name == "real" else [6, 10], "gamma": 0.1}
    model: Any = made(name)
    bidet = name.endswith("bidet")
    for head, sigma in ((model.rpn_head, 0.001), (model.roi_head.bbox_head, 0.001)):
        coder = head.bbox_coder
        assert isinstance(coder, MeanVarianceCoder) is bidet and (not bidet or coder.sigma == sigma)
    assert tuple(model.roi_head.bbox_head.bbox_coder.stds) == (0.1, 0.1, 0.2, 0.2)
    weights = [(m.feature, m.prior) for m in model.modules() if isinstance(m, Bottleneck) and m.feature]
    assert weights == ([(0.5, 0.01), (0.02, 0.05)] if bidet else [])
    assert model.rpn_head.rpn_cls.out_channels == 18 and model.rpn_head.rpn_reg.out_channels == (72 if bidet else 36)
    tau = 2 if name == "es_bidet" else 1
    assert (model.rpn_head.rpn_conv if name == "real" else model.rpn_head.rpn_conv.conv).bias.shape == (512 // tau,)
    box = model.roi_head.bbox_head
    assert (box.fc_cls.out_features, box.fc_reg.out_features, box.fc_cls.in_features) == (21, 8 if bidet else 4, 512)
    align = model.roi_head.bbox_roi_extractor.roi_layers[0]
    assert (align.output_size, align.spatial_scale, align.sampling_ratio, align.aligned) == ((7, 7), 1 / 16, 0, False)


def test_what_is_detected_and_sampled_is_the_originals() -> None:
    options = model_config(f"{CONFIGS}/bidet_faster_rcnn_r18.py", {}, 20)
    train, test = options.train_cfg, options.test_cfg
    proposals = train.rpn_proposal
    assert (proposals.nms_pre, proposals.max_per_img, proposals.nms.iou_threshold) == (12000, 2000, 0.7)
    assert proposals.min_bbox_size == test.rpn.min_bbox_size == -1
    assert (test.rpn.nms_pre, test.rpn.max_per_img, test.rpn.nms.iou_threshold) == (6000, 300, 0.7)
    assert (test.rcnn.score_thr, test.rcnn.nms.iou_threshold, test.rcnn.max_per_img) == (0.0, 0.3, 100)
    assert (train.rpn.sampler.num, train.rpn.sampler.pos_fraction, train.rpn.allowed_border) == (256, 0.5, 0)
    assert (train.rpn.assigner.pos_iou_thr, train.rpn.assigner.neg_iou_thr) == (0.7, 0.3)
    assert train.rpn.assigner.match_low_quality and train.rpn.assigner.min_pos_iou < 1e-3
    # smooth L1 of sigma 3 is 4.5 x^2 up to 1/9, of sigma 1 x^2 / 2 up to 1
    model = build(options)
    for loss, half in ((model.rpn_head.loss_bbox, 4.5), (model.roi_head.bbox_head.loss_bbox, 0.5)):
        assert loss(torch.tensor([[0.1]]), torch.zeros(1, 1)).item() == pytest.approx(half * 0.01)
    assert (train.rcnn.sampler.num, train.rcnn.sampler.pos_fraction, train.rcnn.assigner.pos_iou_thr) == (
        256,
        0.25,
        0.5,
    )


def test_images_reach_the_network_as_imagenets_rgb() -> None:
    """/255, less the mean, over the deviation, RGB; a smaller image is padded below and on the right with zeros."""
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((40, 64), (48, 50))]
    samples = [DetDataSample(metainfo={"img_shape": picture.shape[:2]}) for picture in pictures]
    data = {"inputs": [torch.from_numpy(p).permute(2, 0, 1) for p in pictures], "data_samples": samples}
    got = made("bidet").data_preprocessor(data, training=False)["inputs"]
    assert got.shape == (2, 3, 48, 64)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for image, picture in zip(got, pictures, strict=True):
        height, width = picture.shape[:2]
        rgb = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(image[:, :height, :width], (rgb - mean) / deviation, rtol=1e-4, atol=1e-4)
        assert not image[:, height:].any() and not image[:, :, width:].any()


def test_the_shorter_side_becomes_600_and_half_are_flipped() -> None:
    def loaded(**options: Any) -> dict[str, Any]:
        data = VOCDataModule(
            root=str(ROOT / "tests" / "data" / "voc"),
            train=["VOC2007/train"],
            batch_size=2,
            pipeline=str(ROOT / PIPELINE),
            **options,
        )
        data.setup("fit")
        items = [item for batch in data.train_dataloader() for item in zip(*batch.values(), strict=True)]
        return {sample.img_path: (inputs, sample) for inputs, sample in items}

    plain, others = loaded(augment=False), [loaded(seed=seed) for seed in (1, 2, 3)]
    flips = 0
    for path, (inputs, sample) in plain.items():
        height, width = inputs.shape[1:]
        old_height, old_width = sample.ori_shape
        assert min(height, width) == 600
        assert max(height, width) == round(600 * max(old_height, old_width) / min(old_height, old_width))
        for other in others:
            image, found = other[path]
            flipped = bool(found.metainfo["flip"])
            flips += flipped
            assert torch.equal(image, inputs.flip(2) if flipped else inputs)
            boxes, own = (
                torch.as_tensor(getattr(s.gt_instances.bboxes, "tensor", s.gt_instances.bboxes))
                for s in (found, sample)
            )
            want = torch.stack([width - own[:, 2], own[:, 1], width - own[:, 0], own[:, 3]], 1) if flipped else own
            torch.testing.assert_close(boxes, want, rtol=0, atol=1e-3)
    assert 0 < flips < 3 * len(plain)


def test_operations_are_the_published_trunks_and_the_heads() -> None:
    """18.06e8 up to layer3 at 600x1000, then the binary 3x3 and the 1x1 to 18 + 72 values on 38x63 cells.

    Source: papers.md#operations.
    """
    costs = [
        count_detector(made(name, test_cfg__rpn__max_per_img=300), (3, 600, 1000)) for name in ("bidet", "es_bidet")
    ]
    cells = 38 * 63
    for cost in costs:
        heads = 9 * 256 * 512 * cells / 64 + 512 * (18 + 72) * cells
        assert f"{(cost.image.ops - heads) / 1e8:.2f}" == "18.06"
        # layer4 on 4x4: three binary 3x3 of 512 and one of 256, the real shortcut, and the two linear layers
        region = (3 * 512 + 256) * 512 * 9 * 16 / 64 + 256 * 512 * 16 + 512 * (21 + 8)
        assert cost.region.ops == region and cost.regions == 300
    assert costs[0].binary_params == costs[1].binary_params and costs[0].ops == costs[1].ops


@pytest.mark.parametrize(("tau", "groups"), [(4, 1), (2, 2)])
def test_other_factors_are_set_in_the_backbone_alone(tau: int, groups: int) -> None:
    changes = {"backbone.tau": tau, "backbone.groups": groups}
    model = build(model_config(f"{CONFIGS}/es_bidet_faster_rcnn_r18.py", changes, 7)).eval()
    with torch.no_grad():
        features = model.extract_feat(torch.randn(1, 3, 64, 64))
        assert features[0].shape == (1, tau * groups * 256, 4, 4)
        scores, codes = model.rpn_head(features)
        assert scores[0].shape == (1, 18, 4, 4) and codes[0].shape == (1, 72, 4, 4)
        regions = model.roi_head.shared_head(
            model.roi_head.bbox_roi_extractor(features, torch.tensor([[0.0, 5, 5, 60, 60]]))
        )
        assert [y.shape for y in model.roi_head.bbox_head(regions)] == [(1, 8), (1, 8)]
