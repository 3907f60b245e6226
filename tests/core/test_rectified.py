"""A unit behind a ReLU: signs of 0 and 1 against plain torch, in training, in evaluation and packed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError, pack_
from esbnn_core.layers import Expansion, PositiveSign
from esbnn_core.units import BinaryUnit, UnitStyle
from tests.helpers.options import unit_options


def rectified(channels: int, out: int, kernel: int = 1, tau: int = 1, groups: int = 1, stride: int = 1) -> BinaryUnit:
    torch.manual_seed(channels)
    unit = BinaryUnit(
        *(channels, out, kernel, stride, 0),
        style=UnitStyle(
            shift=False, weight_quantizer="absmean_attached", latent_init="kaiming", pad_value=-1, act="none"
        ),
        expansion=Expansion(tau, groups),
        rectified=True,
    )
    for name, parameter in unit.norm.named_parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
        assert name in ("weight", "bias")
    return unit.double()


def relu_map(unit: BinaryUnit, side: int) -> Tensor:
    x = torch.randn(2, unit.conv.in_channels, side, side, generator=torch.Generator().manual_seed(side))
    return x.double().relu()


def reference(unit: BinaryUnit, x: Tensor, training: bool) -> Tensor:
    """torch.sign's 0 and 1, the derivative 2 - 2|x| of [0, 1), weights alpha * sign(W) with the identity estimator."""
    sign = x.sign()
    surrogate = torch.where(x < 1, 2 * x - x * x, torch.ones_like(x))
    sign = sign.detach() + surrogate - surrogate.detach()
    latent = unit.conv.weight
    scale = latent.abs().mean((1, 2, 3), keepdim=True)
    weight = latent + (torch.where(latent >= 0, 1.0, -1.0) - latent).detach()
    y = F.conv2d(sign, scale * weight, stride=unit.conv.stride, groups=unit.groups).repeat(1, unit.copies, 1, 1)
    norm = unit.norm
    return F.batch_norm(y, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias, training)


CASES = [(5, 8, 1, 1, 1, 1, 4), (33, 16, 1, 2, 1, 1, 5), (12, 8, 3, 1, 1, 2, 7), (8, 8, 1, 2, 2, 1, 3)]


@pytest.mark.parametrize(("channels", "out", "kernel", "tau", "groups", "stride", "side"), CASES)
def test_values_and_gradients_are_those_of_signs_of_zero_and_one(
    channels: int, out: int, kernel: int, tau: int, groups: int, stride: int, side: int
) -> None:
    unit = rectified(channels, out, kernel, tau, groups, stride)
    x = relu_map(unit, side).requires_grad_()
    assert 0.3 < (x == 0).double().mean() < 0.7
    twin = copy.deepcopy(unit)
    for training in (True, False):
        unit.train(training), unit.zero_grad()
        want = reference(twin, x, training)
        got = unit(x)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        factor = torch.randn_like(got)
        names = [unit.conv.weight, unit.norm.weight, unit.norm.bias, x]
        wanted = torch.autograd.grad((want * factor).sum(), [twin.conv.weight, twin.norm.weight, twin.norm.bias, x])
        for one, other in zip(torch.autograd.grad((got * factor).sum(), names), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
        twin.norm.load_state_dict(unit.norm.state_dict())  # the statistics that training has left


@pytest.mark.parametrize(("channels", "out", "kernel", "tau", "groups", "stride", "side"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_gives_the_same_numbers(
    channels: int, out: int, kernel: int, tau: int, groups: int, stride: int, side: int, dtype: torch.dtype
) -> None:
    unit = rectified(channels, out, kernel, tau, groups, stride).to(dtype)
    x = relu_map(unit, side).to(dtype)
    x[0, :, 0, 0] = 0
    x[1, :, 0, 0] = 1e-30
    unit.train()(x)
    with torch.no_grad():
        want = unit.eval()(x)
        packed = pack_(unit)
        assert torch.equal(packed(x), want)
        rows = packed(x)[:, :, 0, 0]
        assert not torch.allclose(rows[0], rows[1])  # no object and a faint one are told apart


def test_the_sign_is_strict_and_has_no_tensor_in_the_file() -> None:
    sign = PositiveSign(3)
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 2.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert sign(x)[:, 0, 0, 0].tolist() == [-1, -1, -1, 1, 1]
    assert torch.where(x + sign.shift.view(1, -1, 1, 1) >= 0, 1.0, -1.0).equal(sign(x))
    assert list(sign.state_dict()) == [] and list(rectified(4, 4).conv.state_dict()) == ["weight"]


@pytest.mark.parametrize("options", [{"padding": 1}, {"shift": True, "padding": 0}])
def test_a_border_and_a_shift_are_refused(options: dict[str, int | bool]) -> None:
    with pytest.raises(InputError, match=r"unit extra must have no shift and no padding to be rectified, got shift="):
        BinaryUnit(4, 4, 3, **unit_options(**{"shift": False, "rectified": True, "name": "extra", **options}))
