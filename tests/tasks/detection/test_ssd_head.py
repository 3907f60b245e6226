"""SSD's priors, multibox loss and prediction against mmdet's own head and closed forms."""

from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError
from tasks.detection.mmdet.api import TASK_UTILS, InstanceData, build, load_config, scope
from tasks.detection.models.bottleneck import Bottleneck, select_detections
from tasks.detection.models.ssd_head import multibox_loss
from tasks.detection.models.ssd_priors import SSDPriors
from tests.helpers.detection.ssd300 import sample

SIZES = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
CHANNELS = (512, 1024, 512, 256, 256, 256)


def head(kind: str, **options: Any) -> Any:
    """The config's BiDet head, or mmdet's own SSDHead, over narrow maps."""
    config = load_config("configs/detection/mmdet/voc_ssd300.py").to_dict()
    train, test = config["train_cfg"], config["test_cfg"]
    chosen = {**config[f"{kind}_head"], "in_channels": (8,) * 6, "train_cfg": train, "test_cfg": test, **options}
    torch.manual_seed(0)
    return build(chosen)


def maps(values: int, number: int, seed: int) -> list[Tensor]:
    """Outputs of a head by map, (number, priors * values, h, w), float32 with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    priors = (4, 6, 6, 6, 4, 4)
    return [
        torch.randn(number, p * values, *size, generator=generator).requires_grad_()
        for p, size in zip(priors, SIZES, strict=True)
    ]


TRUTH = [
    sample([[20, 30, 180, 200], [100, 100, 290, 280], [5, 200, 60, 290]], [11, 0, 19]),
    sample([[40, 40, 60, 90]], [7]),
]


def test_the_priors_are_mmdets_but_for_what_is_held_to_the_image() -> None:
    with scope():
        other = TASK_UTILS.build(
            {
                "type": "SSDAnchorGenerator",
                "scale_major": False,
                "input_size": 300,
                "basesize_ratio_range": (0.2, 0.9),
                "strides": [8, 16, 32, 64, 100, 300],
                "ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            }
        )
    ours = torch.cat(SSDPriors().grid_priors(SIZES, device="cpu"))
    theirs = torch.cat(other.grid_priors(SIZES, device="cpu"))
    assert len(ours) == 8732
    low, high = theirs.split(2, 1)
    middle, side = ((low + high) / 2).clamp(max=300), (high - low).clamp(max=300)
    torch.testing.assert_close(ours, torch.cat([middle - side / 2, middle + side / 2], 1), rtol=0, atol=1e-3)
    changed = (ours - theirs).abs().amax(1) > 1e-2
    assert 100 < changed.sum() < 500
    with pytest.raises(InputError, match=r"must have one entry a map, got \[1, 2, 2, 2\] entries"):
        SSDPriors([8], [30, 60], [60, 90], [[2], [2]])


@pytest.mark.parametrize("number", [1, 2])
def test_the_loss_is_mmdets_where_boxes_are_their_means(number: int) -> None:
    """Same logits and means: the log variances have no say without sampling."""
    ours, theirs = head("bidet"), head("plain")
    scores, codes = maps(21, number, 0), maps(8, number, 1)
    means = [y.unflatten(1, (-1, 8))[:, :, 4:].flatten(1, 2) for y in codes]
    truth, metas = [s.gt_instances for s in TRUTH[:number]], [s.metainfo for s in TRUTH[:number]]
    got = ours.loss_by_feat(scores, codes, truth, metas)
    want = theirs.loss_by_feat(scores, means, truth, metas)
    assert set(got) == {"loss_cls", "loss_bbox"}
    for name, value in got.items():
        torch.testing.assert_close(value, sum(want[name]).squeeze() if isinstance(want[name], list | tuple) else want)
    gradients = torch.autograd.grad(sum(got.values()), [*scores, *codes])
    wanted = torch.autograd.grad(sum(sum(v).squeeze() for v in want.values()), [*scores, *codes])
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_hard_negatives_are_three_an_object_and_the_worst_ones() -> None:
    torch.manual_seed(0)
    scores, means = torch.randn(2, 40, 4), torch.randn(2, 40, 4)
    labels, targets = torch.full((2, 40), 3), torch.zeros(2, 40, 4)
    labels[0, [3, 9]] = torch.tensor([0, 2])
    loss_cls, loss_bbox = multibox_loss(scores, means, labels, targets)
    each = -scores.log_softmax(-1).gather(2, labels[..., None]).squeeze(2)
    background = [float(each[0, i]) for i in range(40) if i not in (3, 9)]
    want = each[0, 3] + each[0, 9] + sum(sorted(background)[-6:])  # none from the image without objects
    torch.testing.assert_close(loss_cls, want / 2)
    distance = means[0, [3, 9]].abs()
    torch.testing.assert_close(loss_bbox, torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum() / 2)


def test_an_image_without_objects_trains() -> None:
    ours = head("bidet")
    ours.bottleneck.switch_on()
    features = [torch.randn(1, 8, *size, requires_grad=True) for size in SIZES]
    losses = ours.loss(features, [sample([], [])])
    assert set(losses) == {"loss_cls", "loss_bbox", "loss_feature", "loss_prior"}
    assert losses["loss_cls"] == losses["loss_bbox"] == losses["loss_prior"] == 0 < losses["loss_feature"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in ours.parameters())


def test_the_bottleneck_begins_when_it_is_switched_on() -> None:
    ours = head("bidet")
    features = [torch.randn(2, 8, *size) for size in SIZES]
    before = ours.loss(features, TRUTH)
    assert set(before) == {"loss_cls", "loss_bbox"}
    switches = [module for module in ours.modules() if isinstance(module, Bottleneck)]
    assert [(s.feature, s.prior) for s in switches] == [(0.1, 0.2)]
    switches[0].switch_on()
    after = ours.loss(features, TRUTH)
    assert after["loss_cls"] == before["loss_cls"] and after["loss_bbox"] == before["loss_bbox"]
    mean_square = sum(float((y**2).mean()) for y in features) / 6
    assert after["loss_feature"].item() == pytest.approx(0.1 * mean_square, rel=1e-5)
    # hundreds of weak detections an object: their entropy is large, and its gradient reaches the scores alone
    entropies = []
    scores, codes = (
        torch.cat([y.permute(0, 2, 3, 1).reshape(2, -1, values) for y in part], 1)
        for part, values in zip(ours(features), (21, 8), strict=True)
    )
    priors = torch.cat(ours.prior_generator.grid_priors(SIZES, device="cpu"))
    for number, each in enumerate(TRUTH):
        boxes = ours.bbox_coder.decode(priors, codes[number], max_shape=(300, 300))
        for label in each.gt_instances.labels.tolist():  # every class once
            chance = scores[number].softmax(-1)[:, label]
            found = chance[select_detections(boxes, chance, 0.03, 0.45, 200)]
            share = found / found.sum()
            entropies.append(-(share * (share + 1e-6).log()).sum().item())
    assert after["loss_prior"].item() == pytest.approx(0.2 * sum(entropies) / 4, rel=1e-4) and min(entropies) > 1
    grads = torch.autograd.grad(after["loss_prior"], list(ours.parameters()), allow_unused=True)
    touched = {name for (name, _), g in zip(ours.named_parameters(), grads, strict=True) if g is not None}
    assert touched == {f"cls_convs.{i}.{kind}" for i in range(6) for kind in ("weight", "bias")}


def test_boxes_are_drawn_in_training_with_a_sigma() -> None:
    coder = {"type": "MeanVarianceCoder", "target_stds": (0.1, 0.1, 0.2, 0.2), "sigma": 0.5}
    drawn, still = head("bidet", bbox_coder=coder), head("bidet")
    drawn.load_state_dict(still.state_dict())
    features = [torch.randn(2, 8, *size) for size in SIZES]
    one, other = drawn.loss(features, TRUTH)["loss_bbox"], drawn.loss(features, TRUTH)["loss_bbox"]
    assert one != other and still.loss(features, TRUTH)["loss_bbox"] == still.loss(features, TRUTH)["loss_bbox"]
    grads = torch.autograd.grad(one, [conv.weight for conv in drawn.reg_convs])
    log_variances = [g.unflatten(0, (-1, 8))[:, :4].abs().sum() for g in grads]
    assert sum(log_variances) > 0  # they learn


def test_prediction_finds_the_boxes_that_the_codes_say() -> None:
    """Codes and logits made for two objects: their priors alone are confident, everything else is background."""
    ours = head("bidet")
    truth = TRUTH[0].gt_instances
    priors = torch.cat(ours.prior_generator.grid_priors(SIZES, device="cpu"))
    assigned = ours.assigner.assign(InstanceData(priors=priors), truth)
    scores, codes = torch.zeros(8732, 21), torch.zeros(8732, 8)
    scores[:, 20] = 12.0
    for index in (assigned.gt_inds > 0).nonzero().squeeze(1).tolist():
        which = int(assigned.gt_inds[index]) - 1
        scores[index, truth.labels[which]] = 16.0
        codes[index] = ours.bbox_coder.encode(priors[index : index + 1], truth.bboxes[which : which + 1])[0]
        codes[index, :4] = 5.0  # a log variance says nothing about the box
    found = ours.predict_by_feat(
        by_map(scores, 21), by_map(codes, 8), batch_img_metas=[TRUTH[0].metainfo], rescale=False
    )[0]
    assert len(found.labels) == 3 and bool((found.scores > 0.9).all())
    order = found.labels.argsort()
    want = truth.labels.argsort()
    assert found.labels[order].tolist() == truth.labels[want].tolist()
    torch.testing.assert_close(found.bboxes[order], truth.bboxes[want], rtol=0, atol=0.01)


def by_map(values: Tensor, width: int) -> list[Tensor]:
    """(P, width) in the order of the priors -> maps (1, priors * width, h, w)."""
    counts = [p * h * w for p, (h, w) in zip((4, 6, 6, 6, 4, 4), SIZES, strict=True)]
    return [
        part.view(h, w, -1).permute(2, 0, 1)[None].contiguous()
        for part, (h, w) in zip(values.split(counts), SIZES, strict=True)
    ]
