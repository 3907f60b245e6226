"""MeanVarianceCoder against closed forms and mmdet's own coders of four values."""

import math

import pytest
import torch
from torch import Tensor

from esbnn_core import InputError
from tasks.detection.mmdet.api import TASK_UTILS
from tasks.detection.models.coder import MeanVarianceCoder, at_least_float

STDS = (0.1, 0.1, 0.2, 0.2)


def boxes(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 200 * torch.rand(number, 2, generator=generator)
    return torch.cat([low, low + 5 + 150 * torch.rand(number, 2, generator=generator)], 1).double()


def test_a_box_by_hand() -> None:
    """20x10 pixels around (19.5, 24.5) to 40x10 around (29.5, 19.5): half a width right, half a height up, double."""
    prior, box = torch.tensor([[10.0, 20, 29, 29]]), torch.tensor([[10.0, 15, 49, 24]])
    codes = MeanVarianceCoder(target_stds=STDS, whole_pixels=True).encode(prior, box)
    assert codes[0, :4].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(codes[0, 4:], torch.tensor([5.0, -5.0, math.log(2) / 0.2, 0.0]))


@pytest.mark.parametrize(("whole_pixels", "peer"), [(False, "DeltaXYWHBBoxCoder"), (True, "LegacyDeltaXYWHBBoxCoder")])
def test_means_are_mmdets_deltas(whole_pixels: bool, peer: str) -> None:
    priors, truth = boxes(50, 0), boxes(50, 1)
    means = (0.1, -0.2, 0.3, 0.0)
    coder = MeanVarianceCoder(means, STDS, whole_pixels=whole_pixels)
    codes = coder.encode(priors, truth)
    want = TASK_UTILS.get(peer)(target_means=means, target_stds=STDS).encode(priors, truth)
    torch.testing.assert_close(coder.mean(codes), want.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole_pixels", [False, True])
@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), STDS])
def test_decoding_undoes_encoding(whole_pixels: bool, stds: tuple[float, ...]) -> None:
    coder = MeanVarianceCoder(target_stds=stds, whole_pixels=whole_pixels)
    priors, truth = boxes(50, 0), boxes(50, 1)
    codes = coder.encode(priors, truth)
    codes[:, :4] = torch.randn(50, 4)  # a log variance moves no box
    torch.testing.assert_close(coder.decode(priors, codes), truth)


def test_boxes_stay_inside_the_image_and_in_bounds() -> None:
    priors = torch.tensor([[10.0, 10, 30, 30], [-50, -40, -20, -10], [10, 10, 30, 30]])
    codes = torch.zeros(3, 8)
    codes[0, 6:] = 100  # a size that would overflow
    codes[2, 6:] = -100
    pixel = MeanVarianceCoder(whole_pixels=True).decode(priors, codes, max_shape=(60, 80))
    assert pixel.tolist() == [[0, 0, 79, 59], [0, 0, 0, 0], [20, 20, 20, 20]]
    edge = MeanVarianceCoder().decode(priors, codes, max_shape=(60, 80))
    assert edge[0].tolist() == [0, 0, 80, 60]
    free = MeanVarianceCoder(clip_border=False).decode(priors, codes, max_shape=(60, 80))
    assert free[0].tolist() == pytest.approx([20 - 625, 20 - 625, 20 + 625, 20 + 625])


def test_draws_have_the_mean_and_spread_they_are_given() -> None:
    torch.manual_seed(0)
    coder = MeanVarianceCoder(sigma=0.1)
    codes = torch.tensor([0.0, 2.0, -2.0, 4.0, 1.0, 2.0, 3.0, 4.0]).expand(20_000, 8)
    drawn = coder.draw(codes)
    assert torch.equal(drawn[:, :4], codes[:, :4])
    spread = 0.1 * (0.5 * codes[0, :4]).exp()
    torch.testing.assert_close(coder.mean(drawn).std(0), spread, rtol=0.03, atol=0)
    assert ((coder.mean(drawn).mean(0) - codes[0, 4:]).abs() < 5 * spread / 20_000**0.5).all()
    assert MeanVarianceCoder().draw(codes) is codes


def test_a_draw_does_not_depend_on_the_layout_of_memory() -> None:
    codes = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    drawn = []
    for same in (codes, codes.movedim(-1, 0).contiguous().movedim(0, -1)):
        torch.manual_seed(0)
        drawn.append(MeanVarianceCoder(sigma=0.1).draw(same))
    assert torch.equal(*drawn) and not torch.equal(drawn[0], codes)


def test_a_draw_teaches_the_variance() -> None:
    """d(mean + n s e^(v/2))/dv = n s e^(v/2) / 2, half of the draw's distance from the mean."""
    torch.manual_seed(0)
    codes = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    drawn = MeanVarianceCoder(sigma=0.3).draw(codes)
    drawn[:, 4:].sum().backward()
    torch.testing.assert_close(codes.grad[:, :4], 0.5 * (drawn - codes).detach()[:, 4:])
    assert (codes.grad[:, 4:] == 1).all() and (codes.grad[:, :4] != 0).all()


def test_log_variances_have_no_target() -> None:
    weights = MeanVarianceCoder().loss_weights(torch.full((2, 3, 8), 0.5))
    assert weights.tolist() == [[[0.0] * 4 + [0.5] * 4] * 3] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -0.1}, "must be a number of at least 0, got -0.1"),
        ({"target_stds": (0.1, 0.1, 0.0, 0.2)}, "four positive numbers"),
        ({"target_means": (0.0,)}, r"got \(0.0,\)"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeanVarianceCoder(**options)


def test_half_precision_is_widened_alone() -> None:
    x = torch.randn(3)
    assert at_least_float(x) is x and at_least_float(x.double()).dtype == torch.float64
    assert at_least_float(x.bfloat16()).dtype == torch.float32
