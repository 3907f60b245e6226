"""Faster R-CNN over the binary ResNet-18 as a whole: losses, the bottleneck, predictions."""

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError
from tasks.detection.mmdet.api import InstanceData
from tasks.detection.models.anchors import PixelOverlaps
from tasks.detection.models.coder import MeanVarianceCoder
from tests.helpers.detection.faster_rcnn import NAMES, batch, losses, made, predictions, sample, stir, switch_on

pytestmark = pytest.mark.usefixtures("narrow_trunks")

PLAIN_LOSSES = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox"}
TERMS = {"loss_rpn_feature", "loss_rpn_prior", "loss_roi_feature", "loss_roi_prior"}


@pytest.mark.parametrize("name", NAMES)
def test_every_detector_trains_and_predicts(name: str) -> None:
    model = made(name)
    x, samples = batch()
    switch_on(model)
    found = losses(model, x, samples)
    assert set(found) == PLAIN_LOSSES | (TERMS if name.endswith("bidet") else set())
    sum(value for key, value in found.items() if key != "acc").backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad is not key.startswith(("backbone.stem.", "backbone.conv1", "backbone.bn1")), key
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), key
    for boxes in predictions(model.eval(), x, samples):
        assert 20 < len(boxes) <= 100 and boxes.labels.max() < 20
        assert (boxes.bboxes >= 0).all() and (boxes.bboxes < torch.tensor([160.0, 144, 160, 144])).all()
        assert (boxes.scores > 0).all() and (boxes.scores.diff() <= 0).all()


def test_the_bottleneck_waits_until_it_is_switched_on() -> None:
    model = made("bidet")
    x, samples = batch()
    assert set(losses(model, x, samples)) == PLAIN_LOSSES
    switch_on(model)
    found = losses(model, x, samples)
    assert set(found) == PLAIN_LOSSES | TERMS
    restored = made("bidet", seed=3)
    restored.load_state_dict(model.state_dict())
    assert all(m.bottleneck.on for m in (restored.rpn_head, restored.roi_head))


@pytest.mark.parametrize("name", ["bidet", "es_bidet"])
def test_feature_terms_are_mean_squares_of_what_is_carried(name: str) -> None:
    model = stir(made(name)).train()  # so that the copies differ
    x, samples = batch()
    switch_on(model)
    seen: dict[str, Tensor] = {}
    model.rpn_head.rpn_conv.register_forward_hook(lambda _, __, y: seen.update(rpn=y))
    model.roi_head.shared_head.register_forward_hook(lambda _, __, y: seen.update(roi=y))
    found = losses(model, x, samples)
    wide = 256 if name == "es_bidet" else 128
    assert seen["rpn"].shape[1] == seen["roi"].shape[1] == wide and seen["roi"].shape[2:] == (4, 4)
    torch.testing.assert_close(found["loss_rpn_feature"], 0.5 * seen["rpn"].square().mean())
    torch.testing.assert_close(found["loss_roi_feature"], 0.02 * seen["roi"].mean((2, 3)).square().mean())


def test_the_rpns_prior_is_its_proposals_entropy_without_a_gradient() -> None:
    model = made("bidet")
    x, samples = batch()
    samples[0].gt_instances.labels.zero_()  # the first stage knows objects alone
    switch_on(model)
    with torch.no_grad():
        features = model.extract_feat(x)
    found, proposals = model.rpn_head.loss_and_predict(features, samples, model.train_cfg.rpn_proposal)
    shares = [boxes.scores / boxes.scores.sum() for boxes in proposals]
    entropies = [-(s * (s + 1e-6).log()).sum() / n for s, n in zip(shares, (3, 1), strict=True)]
    torch.testing.assert_close(found["loss_rpn_prior"], 0.01 * sum(entropies) / 2)
    assert not found["loss_rpn_prior"].requires_grad and found["loss_rpn_feature"].requires_grad


@pytest.mark.slow
def test_the_regions_prior_teaches_the_classifier() -> None:
    model = made("bidet")
    x, samples = batch()
    switch_on(model)
    found = losses(model, x, samples)
    assert found["loss_roi_prior"].item() > 0
    found["loss_roi_prior"].backward()
    head = model.roi_head.bbox_head
    assert head.fc_cls.weight.grad.abs().max() > 0 and head.fc_reg.weight.grad is None
    # an image without an object has no present class
    switch_on(empty := made("bidet"))
    nothing = losses(empty, x, [sample(144, 160, [], []), sample(144, 160, [], [])])
    assert nothing["loss_roi_prior"].item() == 0 and nothing["loss_bbox"].item() == 0
    assert all(value.isfinite() for value in nothing.values())


def test_boxes_are_drawn_in_training_and_by_option_in_evaluation() -> None:
    model = made("es_bidet")
    x, _ = batch()
    head = model.rpn_head
    assert head.bbox_coder.sigma == model.roi_head.bbox_head.bbox_coder.sigma == 0.001
    with torch.no_grad():
        features = model.eval().extract_feat(x)
        still, again = (head(features)[1][0] for _ in range(2))
        assert torch.equal(still, again) and not head.draw_in_evaluation
        head.draw_in_evaluation = True
        moved = head(features)[1][0]
    cells, values = (y.unflatten(1, (9, 8)) for y in (still, moved))
    assert torch.equal(cells[:, :, :4], values[:, :, :4])
    step = (values - cells)[:, :, 4:] / (0.5 * cells[:, :, :4]).exp()
    assert step.std().item() == pytest.approx(0.001, rel=0.05)
    regions = torch.randn(6, 256, 4, 4)
    box = model.roi_head.bbox_head
    assert torch.equal(box(regions)[1], box(regions)[1])
    first = regions.clone()
    first[:, 128:] = 0  # the first copy alone is read
    assert all(torch.equal(one, other) for one, other in zip(box(regions), box(first), strict=True))
    assert not torch.equal(box.train()(regions)[1], box(regions)[1])


def test_losses_are_of_the_means_alone() -> None:
    """With the log variances anywhere, and no draw, both box losses are what the means give."""
    model = made("bidet")
    x, samples = batch()
    for head in (model.rpn_head, model.roi_head.bbox_head):
        head.bbox_coder = MeanVarianceCoder(head.bbox_coder.means, head.bbox_coder.stds, 0.0, whole_pixels=True)
    before = losses(model, x, samples)
    with torch.no_grad():
        model.rpn_head.rpn_reg.bias.view(9, 8)[:, :4] += 3
        model.roi_head.bbox_head.fc_reg.bias[:4] += 3
    after = losses(model, x, samples)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    with torch.no_grad():
        model.rpn_head.rpn_reg.bias.view(9, 8)[:, 4:] += 0.5
        model.roi_head.bbox_head.fc_reg.bias[4:] += 0.5
    moved = losses(model, x, samples)
    assert all((moved[key] - before[key]).abs() > 1e-3 for key in ("loss_rpn_bbox", "loss_bbox"))


def test_without_expansion_es_is_the_plain_detector() -> None:
    es = made("es_bidet", backbone__tau=1)
    plain = made("bidet")
    assert list(es.state_dict()) == list(plain.state_dict())
    es.load_state_dict(plain.state_dict())
    x, samples = batch()
    one, other = (losses(model, x, samples) for model in (es, plain))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_an_image_without_room_for_an_anchor_is_named() -> None:
    model = made("bidet")
    with pytest.raises(
        InputError, match=r"image street\.jpg must be large enough for an anchor, got 80x64 pixels: resize images"
    ):
        losses(model, torch.randn(1, 3, 64, 80), [sample(64, 80, [[1, 2, 30, 40]], [0])])


def test_wrong_options_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="has width 16, which tau=3"):
        made("es_bidet", backbone__tau=3)
    for part in ("rpn_head", "roi_head", "roi_head__bbox_head", "backbone"):
        with pytest.raises(InputError, match="featur_weight"):
            made("bidet", **{f"{part}__featur_weight": 0.5})


@pytest.mark.parametrize(
    ("name", "place", "value", "sentence"),
    [
        ("es_bidet", "rpn_head__tau", 1, r"rpn_head\.tau must be the backbone's 2, got 1: leave it out"),
        ("bidet", "roi_head__shared_head__groups", 2, r"shared_head\.groups must be the backbone's 1, got 2"),
        ("xnor", "rpn_head__variant", "bidet", r"rpn_head\.variant must be the backbone's xnor, got bidet"),
        ("xnor", "roi_head__shared_head__shortcuts", True, r"shortcuts must be the backbone's False, got True"),
        (
            "es_bidet",
            "roi_head__bbox_roi_extractor__out_channels",
            256,
            r"out_channels must be the backbone's 128, got 256",
        ),
        (
            "es_bidet",
            "roi_head__shared_head__type",
            "BiDetResLayer",
            r"must take the backbone's tau=2, got a BiDetResLayer without tau",
        ),
        ("bidet", "backbone__type", "ResNet", r"must be ESBiDetResNet18 or BiDetResNet18, got ResNet"),
        ("bidet", "rpn_head__type", "RPNHaed", r"RPNHaed is not in a registry of mmdet"),
    ],
)
def test_parts_that_do_not_fit_the_backbone_are_named(name: str, place: str, value: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        made(name, **{place: value})


def test_targets_of_the_first_stage_follow_the_original() -> None:
    """256 anchors inside the image, at most half of them positive: IoU over 0.7 or an object's best."""
    head = made("bidet").rpn_head
    (anchors,) = head.prior_generator.grid_priors([(20, 30)], device="cpu")
    truth = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 190, 100], [200, 100, 330, 230]]), labels=torch.zeros(2).long()
    )
    flags = torch.ones(len(anchors), dtype=torch.bool)
    labels, weights, targets, box_weights, positive, negative, _ = head._get_targets_single(
        anchors, flags, truth, {"img_shape": (320, 480)}
    )
    inside = ((anchors >= 0) & (anchors < torch.tensor([480, 320, 480, 320]))).all(1)
    assert len(positive) + len(negative) == 256 and 0 < len(positive) <= 128
    assert weights.sum() == 256 and not weights[~inside].any()
    overlaps = PixelOverlaps()(truth.bboxes, anchors)
    best = torch.where(inside, overlaps, -1.0).max(1, keepdim=True).values
    chosen = (labels == 0) & (weights > 0)
    assert ((overlaps >= 0.7) | (overlaps == best))[:, chosen].any(0).all()
    assert (overlaps[:, (labels == 1) & (weights > 0)] < 0.3).all()
    assert (box_weights[chosen] == 1).all() and box_weights.sum() == 8 * chosen.sum()
    decoded = head.bbox_coder.decode(anchors[chosen], targets[chosen])
    assert all((box - truth.bboxes).abs().sum(1).min() < 1e-3 for box in decoded)
