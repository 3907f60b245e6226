"""The baselines of the published table: what one convolution of each computes, layouts, costs, and that they train."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import AbsMean, Libra, PlainSign
from esbnn_core.units.timestep import TimestepUnit
from tasks.super_resolution.conv_variants import VARIANTS, ConvStyle, RealConv
from tasks.super_resolution.cost import count_unet
from tasks.super_resolution.unet import BIDiffSRUNet
from tests.helpers.options import expansion_options
from tests.helpers.super_resolution.unet import SMALL, meta, named, pair, randn, small
from tests.helpers.units import relative

BINARY = [name for name in VARIANTS if name != "real"]


def scale_of(variant: str, weight: Tensor) -> Tensor:
    """The paper's scale of each filter, in words of its own."""
    rows = weight.flatten(1)
    if variant == "bnn":
        return torch.ones(len(rows), dtype=weight.dtype)
    if variant == "dorefa":
        return (weight.abs().sum() / weight.numel()).repeat(len(rows))
    if variant == "irnet":
        standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        return torch.tensor([2.0 ** round(float(row.abs().mean().log2())) for row in standard]).to(weight)
    return rows.abs().mean(1)


@pytest.mark.parametrize("variant", BINARY)
def test_what_a_convolution_of_the_variant_computes(variant: str) -> None:
    torch.manual_seed(0)
    unit = ConvStyle(variant).conv(6, 3, "unit").double().eval()  # type: ignore[arg-type]
    assert isinstance(unit, TimestepUnit)
    assert unit.timestep_groups == (5 if variant == "bi" else 1)
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(unit.named_parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed) * (0.5 if name == "conv.weight" else 0.3) + 0.1)
    x, k = randn(2, 6, 5, 7, seed=40), 3 if variant == "bi" else 0

    def of(numbers: nn.ParameterList) -> Tensor:
        return numbers[k].view(1, -1, 1, 1)

    weight = unit.conv.weight
    centre = weight.mean((1, 2, 3), keepdim=True) if variant == "irnet" else 0
    signs = torch.where(x + (of(unit.shift.shifts) if unit.shift else 0) >= 0, 1.0, -1.0).double()
    y = F.conv2d(signs, torch.where(weight - centre >= 0, 1.0, -1.0).double(), padding=1)
    y = y * scale_of(variant, weight.detach()).view(1, -1, 1, 1)
    if variant in ("bi", "bbcu", "reactnet"):
        y = y + x if variant == "reactnet" else y
        y = y + of(unit.act.shifts_in)  # type: ignore[union-attr]
        y = torch.where(y > 0, y, of(unit.act.slopes) * y) + of(unit.act.shifts_out)  # type: ignore[union-attr]
        y = y if variant == "reactnet" else y + x
    else:
        assert unit.shift is None and unit.act is None
    with torch.no_grad():
        assert relative(unit(x, torch.tensor([k])), y.detach()) < 1e-12


@pytest.mark.parametrize(
    ("variant", "kind", "weight_ste", "ste"),
    [
        ("bi", AbsMean, "clip", "poly2"),
        ("bnn", PlainSign, "clip", "clip"),
        ("dorefa", AbsMean, "identity", "clip"),
        ("xnor", AbsMean, "clip", "clip"),
        ("irnet", Libra, "clip", "clip"),
        ("reactnet", AbsMean, "clip", "poly2"),
        ("bbcu", AbsMean, "clip", "poly2"),
    ],
)
def test_estimators_are_the_variants_in_every_layer(variant: str, kind: type, weight_ste: str, ste: str) -> None:
    layers = [layer for _, layer in binary_layers(small(variant=variant))]
    assert len(layers) > 20
    for layer in layers:
        assert type(layer.quantizer) is kind and layer.quantizer.ste == weight_ste and layer.sign.ste == ste
    assert len({id(layer.quantizer) for layer in layers}) == len(layers)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "tau"), [*((variant, 1) for variant in VARIANTS), ("real", 2), ("reactnet", 2)])
def test_every_variant_learns_and_hears_the_timestep(variant: str, tau: int) -> None:
    torch.manual_seed(0)
    # two levels have every kind of layer that three have
    options = {**SMALL, "channel_mults": (1, 2), "variant": variant, "tau": tau, "dropout": 0.0}
    unet = BIDiffSRUNet(**options).train()
    noisy, condition = (t.float() for t in pair(side=8, batch=5))
    t = torch.tensor([0, 500, 900, 1300, 1999])
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (unet(noisy, t, condition).sample - noisy).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0], losses
    with torch.no_grad():
        unet.eval()
        assert relative(unet(noisy, t, condition).sample, unet(noisy, t.flip(0), condition).sample) > 1e-4


@pytest.mark.slow
def test_costs_of_the_variants_at_the_official_size() -> None:
    """Binary ones have BI-DiffSR's operations; the published rows stand in SR3's UNet and have others."""
    costs = {variant: count_unet(meta(variant=variant)) for variant in ("bi", "real", "bnn", "bbcu")}
    base = costs["bi"].layers
    for variant in ("bnn", "bbcu"):
        layers = costs[variant].layers
        assert (layers.bops, layers.flops, layers.binary_params) == (base.bops, base.flops, base.binary_params), variant
    words = {variant: f"{cost.params_32bit / 1e6:.3f}" for variant, cost in costs.items()}
    assert words == {"bi": "4.575", "real": "50.951", "bnn": "4.228", "bbcu": "4.298"}
    real = costs["real"].layers
    assert (real.bops, real.binary_params) == (0, 0) and real.flops == base.bops + base.flops


def test_variants_of_one_layout_have_the_same_tensors() -> None:
    shapes = {v: {k: t.shape for k, t in small(variant=v).state_dict().items()} for v in BINARY}  # type: ignore[arg-type]
    assert shapes["bnn"] == shapes["dorefa"] == shapes["xnor"] == shapes["irnet"]
    assert shapes["reactnet"] == shapes["bbcu"] != shapes["bi"]
    assert shapes["bbcu"] == {k: v for k, v in shapes["bi"].items() if not k.endswith((".1", ".2", ".3", ".4"))}


def test_the_real_variant_has_an_ordinary_convolution_with_bias_in_every_place() -> None:
    real, base = small(variant="real"), small()
    assert not binary_layers(real)
    places = {name for name, module in named(base, TimestepUnit).items()}
    convs = named(real, RealConv)
    assert places and places <= convs.keys() and all(conv.bias is not None for conv in convs.values())
    x, group = randn(2, 8, 5, 5), torch.tensor([0])
    one = convs["downs.0.conv1"]
    with torch.no_grad():
        assert torch.equal(one(x, group), F.conv2d(x, one.weight, one.bias, padding=1))


@pytest.mark.parametrize("options", [{"tau": 2}, {"tau": 2, "groups": 2}], ids=str)
def test_a_real_convolution_is_shrunk_and_tiled_at_equal_cost(options: dict[str, Any]) -> None:
    conv = RealConv(8, 3, **expansion_options(**options)).double()
    wide = options["tau"] * options.get("groups", 1)
    assert conv.weight.numel() == 8 * 8 * 9 and conv.copies == options["tau"] * wide
    x = randn(2, 8 * wide, 5, 4)
    with torch.no_grad():
        y = conv(x, torch.tensor([0]))
        want = F.conv2d(x, conv.weight, conv.bias, padding=1, groups=options.get("groups", 1))
        assert torch.equal(y, want.repeat(1, conv.copies, 1, 1)) and y.shape == x.shape


def test_a_copy_of_a_variant_is_itself() -> None:
    unet = small(variant="irnet", tau=2)
    noisy, condition = pair()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(unet)(noisy, 9, condition).sample, unet(noisy, 9, condition).sample)
