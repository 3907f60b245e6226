"""The packed TimestepUnit computes what the latent one does, group by group, in a network and through its file."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import count, pack_
from esbnn_core.packed.timestep import PackedTimestepUnit
from esbnn_core.transforms.pack import pack_layout_
from esbnn_core.units.timestep import TimestepUnit
from tests.helpers.options import expansion_options


def made(seed: int, channels: int, kernel: int, **options: object) -> TimestepUnit:
    """A unit in evaluation, every number of it drawn."""
    torch.manual_seed(seed)
    unit = TimestepUnit(channels, kernel, **expansion_options(**options))
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.5)
    return unit.eval()


def maps(unit: TimestepUnit, batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, unit.conv.in_channels, height, width)


SHAPES = [(8, 3, {}), (24, 1, {}), (40, 3, {"tau": 2}), (16, 3, {"tau": 2, "groups": 2}), (64, 1, {"tau": 4})]


@pytest.mark.parametrize("residual", ["after_act", "before_act", "none"])
@pytest.mark.parametrize("act", ["rprelu", "none"])
@torch.no_grad()
def test_every_bit_is_the_latent_units(residual: str, act: str) -> None:
    for seed, (channels, kernel, options) in enumerate(SHAPES):
        shifts = {"shift": seed % 2 == 0}
        unit = made(seed, channels, kernel, residual=residual, act=act, timestep_groups=3, **shifts, **options)
        packed = pack_(copy.deepcopy(unit))
        assert isinstance(packed, PackedTimestepUnit)
        x = maps(unit, 3, 7, 10)
        for group in ([0, 0, 0], [2, 0, 1], [1], [2]):
            g = torch.tensor(group)
            want = unit(x, g)
            assert torch.equal(packed(x, g), want)
            # the layout of the input is the output's
            last = packed(x.contiguous(memory_format=torch.channels_last), g)
            assert torch.equal(last, want)
            assert last.is_contiguous(memory_format=torch.channels_last) or kernel == 1


@torch.no_grad()
def test_groups_differ_and_half_precision_is_near() -> None:
    unit = made(3, 32, 3, tau=2, timestep_groups=4)
    packed = pack_(copy.deepcopy(unit))
    x = maps(unit, 1, 9, 9)
    outs = [packed(x, torch.tensor([group])) for group in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(outs, 2))
    narrow = copy.deepcopy(packed).bfloat16()
    x = x.bfloat16()  # the signs are then the same in both
    for group in range(4):
        g = torch.tensor([group])
        got, want = narrow(x, g), unit(x.float(), g)
        assert got.dtype is torch.bfloat16
        assert (got.float() - want).abs().max() <= want.abs().max() * 2**-8  # one rounding of the output


@torch.no_grad()
def test_the_layout_reads_the_packed_state() -> None:
    for seed, (channels, kernel, options) in enumerate(SHAPES):
        unit = made(seed, channels, kernel, timestep_groups=2, **options)
        packed, empty = pack_(copy.deepcopy(unit)), pack_layout_(copy.deepcopy(unit))
        x, g = maps(unit, 2, 5, 6), torch.tensor([1, 0])
        assert not torch.equal(empty(x, g), packed(x, g))
        empty.load_state_dict(packed.state_dict())
        assert torch.equal(empty(x, g), packed(x, g))


class Net(nn.Module):
    """One unit between two real convolutions, one timestep group for all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.unit = nn.Conv2d(3, 16, 3, padding=1), made(0, 8, 3, tau=2, timestep_groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.stem(x), torch.zeros(1, dtype=torch.long, device=x.device))  # type: ignore[no-any-return]


@torch.no_grad()
def test_costs_are_the_same_packed(tmp_path: Path) -> None:
    net = Net().eval()
    latent, packed = count(net, (3, 6, 6)), count(pack_(copy.deepcopy(net)), (3, 6, 6))
    assert latent.bops == packed.bops == 6 * 6 * 9 * 8 * 8
    assert latent.flops == packed.flops == 6 * 6 * 9 * 3 * 16
    assert latent.binary_params == packed.binary_params == 9 * 8 * 8
    assert latent.packed_bytes == packed.latent_bytes


def test_a_weight_that_is_not_finite_names_the_unit() -> None:
    net = Net()
    net.unit.conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"latent weights of layer unit must be finite"):
        pack_(net)
    assert isinstance(net.unit, TimestepUnit)
