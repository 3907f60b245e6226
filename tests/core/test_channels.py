"""Widths under (tau, groups), the tile order and the start of the copies, against the definitions of the method."""

import itertools
from statistics import NormalDist
from typing import Any

import pytest
import torch

from esbnn_core import InputError
from esbnn_core.errors import check_factors
from esbnn_core.layers import Expansion, RSign, Tile
from esbnn_core.layers.widths import es_widths, thermometer_shift, tile

FACTORS = [(tau, groups) for tau in (1, 2, 3, 4, 8) for groups in (1, 2, 4)]


@pytest.mark.parametrize(("c_in", "c_out"), [(16, 96), (64, 192), (5, 24), (3, 7)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_and_operations_do_not_depend_on_tau_and_groups(c_in: int, c_out: int, kernel: int) -> None:
    seen = 0
    for tau, groups in FACTORS:
        if c_out % (tau * groups):
            continue
        seen += 1
        w = es_widths(c_in, c_out, Expansion(tau, groups))
        assert w.carried_in % groups == 0 and w.filters % groups == 0
        weights = w.filters * (w.carried_in // groups) * kernel**2
        assert weights == c_in * c_out * kernel**2
        assert (w.carried_in, w.carried_out) == (tau * groups * c_in, tau * groups * c_out)
        assert w.copies * w.filters == w.carried_out
        # the layer as torch builds it, not as the widths say
        conv = torch.nn.Conv2d(w.carried_in, w.filters, kernel, groups=groups, bias=False)
        assert conv.weight.numel() == c_in * c_out * kernel**2
    assert seen == {24: 12, 96: 15, 192: 15, 7: 1}[c_out]


def test_a_chain_of_layers_fits_together() -> None:
    for tau, groups in FACTORS:
        widths = [es_widths(c_in, c_out, Expansion(tau, groups)) for c_in, c_out in ((96, 192), (192, 192), (192, 96))]
        for before, after in itertools.pairwise(widths):
            assert before.carried_out == after.carried_in


@pytest.mark.parametrize(("width", "tau", "groups"), [(64, 3, 1), (64, 16, 8), (7, 2, 1), (30, 4, 1), (2, 4, 1)])
def test_the_error_names_layer_width_tau_and_groups(width: int, tau: int, groups: int) -> None:
    with pytest.raises(InputError) as error:
        es_widths(16, width, Expansion(tau, groups), layer="stages.layer2.1")
    for word in ("stages.layer2.1", f"width {width}", f"tau={tau}", f"groups={groups}"):
        assert word in str(error.value)


@pytest.mark.parametrize("bad", [0, -1, 1.5, 2.0, "2", True, None])
def test_factors_are_whole_numbers_of_at_least_one(bad: object) -> None:
    with pytest.raises(InputError, match="tau must be"):
        check_factors(bad, 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="groups must be"):
        check_factors(1, bad)  # type: ignore[arg-type]
    for key in ("tau", "groups"):
        with pytest.raises(InputError, match=f"{key} must be"):
            Expansion(**{key: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "copies"), [(3, 2), (5, 4), (1, 8), (4, 1)])
def test_tile_repeats_whole_blocks(channels: int, copies: int) -> None:
    x = torch.randn(2, channels, 3, 5, generator=torch.Generator().manual_seed(0))
    y = tile(x, copies)
    assert y.shape == (2, channels * copies, 3, 5)
    for j in range(channels * copies):
        assert torch.equal(y[:, j], x[:, j % channels])
    if copies > 1 and channels > 1:
        assert not torch.equal(y, x.repeat_interleave(copies, 1))
    assert torch.equal(Tile(copies)(x), y)
    assert torch.equal(tile(x.movedim(1, -1), copies, dim=-1), y.movedim(1, -1))


def test_tile_keeps_dtype_and_memory_format_and_one_copy_is_the_input() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    y = tile(x, 4)
    assert y.dtype == torch.float64 and y.is_contiguous(memory_format=torch.channels_last)
    assert tile(x, 1) is x


@pytest.mark.parametrize(("tau", "groups"), [(1, 2), (2, 2), (2, 4), (4, 2)])
def test_every_group_of_the_next_layer_sees_every_map(tau: int, groups: int) -> None:
    w = es_widths(8, 32, Expansion(tau, groups))
    maps = tile(torch.arange(w.filters), w.copies, dim=0)
    for part in maps.chunk(groups):
        assert torch.equal(torch.bincount(part), torch.full((w.filters,), tau * tau))
    interleaved = torch.arange(w.filters).repeat_interleave(w.copies)
    assert len(interleaved.chunk(groups)[0].unique()) == w.filters // groups


@pytest.mark.parametrize(("channels", "copies"), [(8, 4), (6, 1), (36, 18), (16, 16)])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_spread_thresholds_are_normal_quantiles(channels: int, copies: int, spread: float) -> None:
    shift = thermometer_shift(channels, copies, spread).view(copies, channels // copies)
    assert shift.dtype == torch.get_default_dtype()
    for j, row in enumerate(shift.double()):
        want = -spread * NormalDist().inv_cdf((j + 0.5) / copies)
        assert torch.allclose(row, torch.full_like(row, want), rtol=1e-6, atol=1e-7)
    assert torch.equal(RSign(channels, copies=copies, copy_spread=spread).shift.detach(), shift.flatten())


def test_spread_thresholds_rise_with_the_copy() -> None:
    shift = thermometer_shift(32, 8, 1.0).view(8, 4)
    assert bool((shift[1:] < shift[:-1]).all())  # a falling shift is a rising threshold
    ones = (torch.zeros(32) + shift.flatten() >= 0).view(8, 4).sum(0)
    assert ones.tolist() == [4] * 4  # a map at 0 lights half of its copies


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf"), 2**70, "1", True, None])
def test_a_spread_is_a_finite_number(bad: Any) -> None:
    with pytest.raises(InputError, match="copy_spread must be a finite number of at least 0, got"):
        Expansion(2, copy_spread=bad)


def test_no_spread_gives_zeros() -> None:
    for channels, copies in ((8, 4), (9, 9), (5, 1)):
        assert torch.equal(thermometer_shift(channels, copies, 0.0), torch.zeros(channels))
        assert torch.equal(RSign(channels, copies=copies).shift.detach(), torch.zeros(channels))


def test_copies_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"10 channels.*3 copies"):
        thermometer_shift(10, 3, 1.0)
