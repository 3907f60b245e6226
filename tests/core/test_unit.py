"""BinaryUnit: folded evaluation, training formula, gradients, statistics of the copies; the clip of latent weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError
from esbnn_core.layers import BinaryConv2d, Expansion
from esbnn_core.layers.base import binary_layers, latent_state
from esbnn_core.layers.quantizers import PlainSign, Temperature
from esbnn_core.layers.widths import thermometer_shift
from esbnn_core.training.latent_clip import attach_latent_clip, clip_latent_weights_
from esbnn_core.units import BinaryUnit, UnitStyle
from esbnn_core.units.folding import fold_norm, folds
from tests.helpers.units import OPTIONS, build, randn, relative


def by_hand(unit: BinaryUnit, x: Tensor, parameters: dict[str, Tensor], batch: bool) -> Tensor:
    """The unit's formula in plain torch, differentiable with the estimators of the defaults (poly2, clip)."""

    def per_channel(t: Tensor) -> Tensor:
        return t.view(1, -1, 1, 1)

    a = x + per_channel(parameters["conv.sign.shift"]) if "conv.sign.shift" in parameters else x
    inner = torch.where(a < 0, a * a + 2 * a, 2 * a - a * a)
    surrogate = torch.where(a.abs() < 1, inner, a.sign()) if unit.conv.sign.ste == "poly2" else a.clamp(-1.5, 1.5)
    signs = torch.where(a.detach() >= 0, 1.0, -1.0).double() + surrogate - surrogate.detach()
    w, conv = parameters["conv.weight"], unit.conv
    if type(conv.quantizer).__name__ == "Temperature":
        weight, scale = w + (w.clamp(-1, 1) - w).detach(), torch.ones(len(w)).double()
    else:
        weight = torch.where(w.detach() >= 0, 1.0, -1.0).double() + w.clamp(-1, 1) - w.clamp(-1, 1).detach()
        absmean = type(conv.quantizer).__name__ == "AbsMean"
        scale = w.detach().abs().mean((1, 2, 3)) if absmean else torch.ones(len(w)).double()
    if "conv.learned_scale" in parameters:
        scale = scale * parameters["conv.learned_scale"]
    vertical, horizontal = conv.padding
    padded = F.pad(signs, (horizontal, horizontal, vertical, vertical), value=float(conv.pad_value))
    bias = parameters.get("conv.bias")
    y = F.conv2d(padded, weight * scale.view(-1, 1, 1, 1), bias, conv.stride, 0, conv.dilation, conv.groups)
    y = torch.cat([y] * (unit.tau**2 * unit.groups), 1)
    if "norm.weight" in parameters:
        mean = y.mean((0, 2, 3)) if batch else unit.norm.running_mean
        var = ((y - per_channel(mean)) ** 2).mean((0, 2, 3)) if batch else unit.norm.running_var
        y = (y - per_channel(mean)) / (per_channel(var) + unit.norm.eps).sqrt()
        y = y * per_channel(parameters["norm.weight"]) + per_channel(parameters["norm.bias"])
    if "inner_act.weight" in parameters:
        y = torch.where(y > 0, y, per_channel(parameters["inner_act.weight"]) * y)
    if unit.shortcut is not None:
        y = y + x
    if "act.slope" in parameters:
        y = y + per_channel(parameters["act.shift_in"])
        y = torch.where(y > 0, y, per_channel(parameters["act.slope"]) * y) + per_channel(parameters["act.shift_out"])
    elif "act.weight" in parameters:
        y = torch.where(y > 0, y, per_channel(parameters["act.weight"]) * y)
    elif isinstance(unit.act, nn.Hardtanh):
        y = y.clamp(-1, 1)
    return y


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batch", [True, False], ids=["train", "eval"])
def test_output_and_gradients_are_those_of_the_formula(options: dict[str, Any], batch: bool) -> None:
    unit = build(options).train(batch)
    x = randn(3, 8 * unit.tau * unit.groups, 7, 5, seed=7).requires_grad_()
    other = x.detach().clone().requires_grad_()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in unit.named_parameters()}
    want = by_hand(unit, other, parameters, batch)
    upstream = randn(*want.shape, seed=8)
    want.backward(upstream)
    got = unit(x)
    got.backward(upstream)
    assert relative(got.detach(), want.detach()) <= 1e-12
    assert relative(x.grad, other.grad) <= 1e-12
    for name, p in unit.named_parameters():
        assert relative(p.grad, parameters[name].grad) <= 1e-12, name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_folding_is_the_unfolded_formula(options: dict[str, Any]) -> None:
    unit = build(options).eval()
    x = randn(2, 8 * unit.tau * unit.groups, 6, 9, seed=3)
    with torch.no_grad():
        y = unit.inner_act(unit.norm(unit.tile(unit.conv(x))))
        want = unit.act(y if unit.shortcut is None else y + unit.shortcut(x))
        assert folds(unit.norm)
        assert relative(unit(x), want) <= 1e-12


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("given", ["", "s", "b", "sb"])
def test_scale_and_bias_of_the_layer_go_through_the_norm(given: str, copies: int, affine: bool) -> None:
    norm = nn.BatchNorm2d(5 * copies, affine=affine).double().eval()
    for seed, (name, tensor) in enumerate(norm.state_dict().items()):
        if tensor.is_floating_point():
            tensor.copy_(randn(5 * copies, seed=seed) ** (2 if name == "running_var" else 1))
    scale, bias = randn(5, seed=8) if "s" in given else None, randn(5, seed=9) if "b" in given else None
    total = randn(2, 5, 3, 3, seed=10).mul(9).round()
    layer = total * (1.0 if scale is None else scale.view(-1, 1, 1)) + (0.0 if bias is None else bias.view(-1, 1, 1))
    factor, offset = fold_norm(scale, bias, norm, copies)
    assert factor is not None and offset is not None
    got = torch.cat([total] * copies, 1) * factor.view(-1, 1, 1) + offset.view(-1, 1, 1)
    assert relative(got, norm(torch.cat([layer] * copies, 1))) <= 1e-12


@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2), (4, 1), (1, 2)])
def test_copies_share_their_statistics(tau: int, groups: int) -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(6, 8, expansion=Expansion(tau, groups))
    for _ in range(3):
        unit(torch.randn(4, 6 * tau * groups, 5, 5))
    copies = tau * tau * groups
    assert unit.copies == copies and unit.norm.num_features == copies * (8 // tau)
    for statistic in (unit.norm.running_mean, unit.norm.running_var):
        rows = statistic.view(copies, 8 // tau)
        assert torch.equal(rows, rows[:1].expand_as(rows))
        assert rows[0].unique().numel() == 8 // tau


def test_a_frozen_norm_in_a_training_unit_is_folded_and_one_without_statistics_is_not() -> None:
    unit = build({"tau": 2}).train()
    x = randn(2, 16, 5, 5)
    assert not folds(unit.norm)
    unit.norm.eval()
    assert folds(unit.norm)
    assert relative(unit(x).detach(), by_hand(unit, x, dict(unit.named_parameters()), batch=False).detach()) <= 1e-12
    unit = build({"tau": 2})
    unit.norm = nn.BatchNorm2d(16, eps=0.3, track_running_stats=False).double()
    unit.eval()
    assert not folds(unit.norm)
    assert relative(unit(x).detach(), by_hand(unit, x, dict(unit.named_parameters()), batch=True).detach()) <= 1e-12


@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2), (4, 1)])
def test_copy_spread_starts_the_shift_as_a_thermometer(tau: int, groups: int) -> None:
    expansion = Expansion(tau, groups, copy_spread=1.5)
    unit = BinaryUnit(8, 8, expansion=expansion)
    want = thermometer_shift(8 * tau * groups, tau * tau * groups, 1.5)
    assert torch.equal(unit.conv.sign.shift.detach(), want)
    with pytest.raises(InputError, match=r"copy_spread of unit layer7 must be 0, got 1\.5"):
        BinaryUnit(8, 8, style=UnitStyle(shift=False), expansion=expansion, name="layer7")


def test_bad_options_are_refused_by_name() -> None:
    bad = {"act": "gelu", "ste": "swish", "latent_init": "zeros", "pad_value": 1, "weight_quantizer": "ternary"}
    for key, value in bad.items():
        with pytest.raises(InputError, match=f"{key} must be one of .*, got {value!r}"):
            UnitStyle(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"layer4\.2.*width 6.*tau=4.*groups=1"):
        BinaryUnit(8, 6, expansion=Expansion(4), name="layer4.2")


def test_units_of_one_style_share_no_quantizer() -> None:
    units = [BinaryUnit(8, 8, style=UnitStyle(weight_quantizer=made)) for made in ["temperature", Temperature] * 2]
    assert len({id(unit.conv.quantizer) for unit in units}) == 4
    assert all(type(unit.conv.quantizer) is Temperature for unit in units)
    with pytest.raises(InputError, match=r"must be a name or a function, got a PlainSign"):
        UnitStyle(weight_quantizer=PlainSign())  # type: ignore[arg-type]


def test_latent_state_is_a_copy_by_name() -> None:
    model = nn.Sequential(BinaryUnit(4, 4), nn.ReLU(), BinaryUnit(4, 4, expansion=Expansion(1)))
    assert [name for name, _ in binary_layers(model)] == ["0.conv", "2.conv"]
    before = latent_state(model)
    with torch.no_grad():
        model[0].conv.weight.add_(1)
    assert torch.equal(before["0.conv"] + 1, model[0].conv.weight)
    assert torch.equal(before["2.conv"], model[2].conv.weight)


def test_latent_weights_stay_inside_after_a_step() -> None:
    torch.manual_seed(0)
    bounded = BinaryConv2d(3, 4, 3, weight_quantizer="temperature")
    narrow = BinaryConv2d(4, 4, 3, weight_quantizer=PlainSign("identity", latent_clip=0.25))
    free = BinaryConv2d(4, 4, 3, weight_quantizer="sign")
    model = nn.Sequential(bounded, narrow, free)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach_latent_clip(optimizer, model)

    def step() -> None:
        for layer in (bounded, narrow, free):
            layer.weight.grad = torch.linspace(-9, 9, layer.weight.numel()).view(layer.weight.shape)
        optimizer.step()

    step()
    assert bounded.weight.abs().max().item() == 1.5
    assert narrow.weight.abs().max().item() == 0.25
    assert free.weight.abs().max().item() > 8
    assert 0 < (bounded.weight.abs() < 1.5).sum().item() < bounded.weight.numel()
    handle.remove()
    step()
    assert bounded.weight.abs().max().item() > 8
    assert clip_latent_weights_(model) is model and bounded.weight.abs().max().item() == 1.5


def test_the_clip_does_not_break_a_pending_backward_silently() -> None:
    layer = BinaryConv2d(3, 4, 3, weight_quantizer="absmean_attached")
    layer.quantizer.latent_clip = 0.5
    out = layer(torch.randn(1, 3, 5, 5)).sum()
    clip_latent_weights_(layer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
