"""The terms of the information bottleneck against closed forms, and what guards them."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from tasks.detection.models.bottleneck import (
    Bottleneck,
    class_entropies,
    feature_term,
    posterior_entropy,
    prior_term,
    select_detections,
)


def test_the_feature_term_is_a_mean_of_means() -> None:
    """Small and large maps weigh the same."""
    maps = [torch.full((2, 3, 8, 8), 3.0), torch.full((2, 5, 1, 1), 1.0, requires_grad=True)]
    term = feature_term(maps)
    assert term.item() == pytest.approx((9 + 1) / 2)
    term.backward()
    assert maps[1].grad is not None and maps[1].grad.sum().item() == pytest.approx(2 / 2)


@pytest.mark.parametrize(("number", "objects"), [(1, 1), (4, 1), (7, 3)])
def test_the_entropy_of_equal_scores_is_the_log_of_their_number(number: int, objects: int) -> None:
    scores = torch.full((number,), 0.3, dtype=torch.float64)
    assert posterior_entropy(scores, objects).item() == pytest.approx(math.log(number) / objects, abs=1e-5)


def test_the_entropy_pushes_strong_scores_up_and_takes_their_sum_for_a_constant() -> None:
    scores = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(posterior_entropy(scores, 1), scores)
    share = scores.detach()  # their sum is 1
    want = -((share + 1e-6).log() + share / (share + 1e-6))
    torch.testing.assert_close(gradient, want)
    assert gradient[0] < 0 < gradient[1]


@pytest.mark.parametrize("scores", [[], [0.0, 0.0], [1.0, 0.0]])
@pytest.mark.parametrize("objects", [0, 2])
def test_zero_scores_and_zero_counts_stay_numbers(scores: list[float], objects: int) -> None:
    values = torch.tensor(scores, requires_grad=True)
    term = posterior_entropy(values, objects)
    term.backward()
    assert math.isfinite(term.item()) and values.grad is not None and bool(torch.isfinite(values.grad).all())
    assert term.item() == pytest.approx(0, abs=1e-5)


def test_no_entropy_is_a_zero_with_a_way_back() -> None:
    like = torch.ones(3, requires_grad=True)
    term = prior_term([], like)
    term.backward()
    assert term.item() == 0 and like.grad is not None and like.grad.tolist() == [0, 0, 0]
    assert prior_term([torch.tensor(1.0), torch.tensor(4.0)], like).item() == 2.5


def crowd(seed: int, number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = 80 * torch.rand(number, 2, generator=generator)
    boxes = torch.cat([low, low + 10 + 40 * torch.rand(number, 2, generator=generator)], 1)
    return boxes, torch.rand(number, 4, generator=generator)


@pytest.mark.parametrize(("seed", "number", "top"), [(0, 60, 200), (1, 150, 5)])
def test_what_is_kept_is_what_greedy_suppression_keeps(seed: int, number: int, top: int) -> None:
    boxes, scores = crowd(seed, number)
    overlap = box_iou(boxes, boxes)
    want: list[int] = []
    for i in scores[:, 0].argsort(descending=True).tolist():
        if scores[i, 0] > 0.2 and all(overlap[i, j] <= 0.45 for j in want):
            want.append(i)
    assert select_detections(boxes, scores[:, 0], 0.2, 0.45, top).tolist() == want[:top] and len(want) > 5


def test_only_present_classes_with_more_detections_than_objects_count() -> None:
    boxes, scores = crowd(2, 80)
    scores[:, 2] = 0.0
    scores[7, 2] = 0.9  # one detection of an object: nothing to thin out
    scores.requires_grad_()
    labels = torch.tensor([0, 2, 0])
    terms = class_entropies(boxes, scores, labels, 0.03, 0.45)
    found = scores[select_detections(boxes, scores[:, 0], 0.03, 0.45, 200), 0].detach()
    share = found / found.sum()
    assert len(terms) == 1
    assert terms[0].item() == pytest.approx(-(share * (share + 1e-6).log()).sum().item() / 2)
    (gradient,) = torch.autograd.grad(terms[0], scores)
    assert gradient[:, 0].ne(0).sum() == len(found) and not gradient[:, 1:].any()
    assert class_entropies(boxes, scores, labels[:0], 0.03, 0.45) == []


def test_the_switch_is_off_until_it_is_thrown_and_a_checkpoint_remembers_it() -> None:
    one, other = Bottleneck(0.1, 0.0), Bottleneck(0.1, 0.0)
    assert not one.active
    one.switch_on()
    assert one.active and not Bottleneck(0, 0).active
    other.load_state_dict(one.state_dict())
    assert other.active
    empty = Bottleneck(0, 0)
    empty.switch_on()
    assert not empty.active
