"""BiDet's trunks: published counts, borders of -1 through packing, expansion at no cost, a read-out of their own."""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError, count, create_model, model_spec, pack_
from esbnn_core.layers import BinaryConv2d
from esbnn_core.transforms.expand import ESConfig, expand_, plan_expansion
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.log import Log
from tests.helpers.networks import narrow, stir

TRUNKS = ["bidet_resnet18", "bidet_vgg16"]
FACTORS = [(2, 1), (2, 2), (4, 1)]


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """All that the trunk hands to a detector, layer4 of the ResNet included."""
    if model_spec(model).name.endswith("vgg16"):
        return list(model(x))
    y = model(x)
    return [y, model.layer4(y)]


def made(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **options)


def test_the_published_counts_of_the_resnet_trunk() -> None:
    """Spec 0.6: the Faster R-CNN base up to layer3 at 600x1000."""
    with torch.device("meta"):
        for model in (create_model("bidet_resnet18"), create_model("es_bidet_resnet18", tau=4)):
            result = count(model, (3, 600, 1000))
            assert (f"{result.bops / 1e9:.3f}", f"{result.ops / 1e8:.2f}") == ("15.310", "18.06")
            # the stem and two real shortcuts (the table prints 15.665e8 for this number)
            assert result.flops == 147 * 64 * 300 * 500 + 64 * 128 * 75 * 125 + 128 * 256 * 38 * 63 == 1_566_446_592
        plain = create_model("bidet_resnet18")
    base = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in plain.layer4.parameters())
    assert f"{base / 1e6:.3f}" == "2.783"


def test_the_published_counts_of_the_detector_with_the_vgg_trunk() -> None:
    """Spec 0.6, 7.3: SSD300 is the trunk, eight binary extras and real 3x3 heads of 8 + 21 values a prior."""
    extras = [(1, 1024, 256, 19), (9, 256, 512, 10), (1, 512, 128, 10), (9, 128, 256, 5)]
    extras += [(1, 256, 128, 5), (9, 128, 256, 3), (1, 256, 128, 3), (9, 128, 256, 1)]
    heads = [(512, 38, 4), (1024, 19, 6), (512, 10, 6), (256, 5, 6), (256, 3, 4), (256, 1, 4)]
    with torch.device("meta"):
        for model in (create_model("bidet_vgg16"), create_model("es_bidet_vgg16", tau=2, groups=2)):
            result = count(model, (3, 300, 300))
            bops = result.bops + sum(taps * i * o * side**2 for taps, i, o, side in extras)
            flops = result.flops + sum(9 * c * 29 * priors * side**2 for c, side, priors in heads)
            assert (f"{bops / 1e9:.3f}", f"{flops / 1e8:.3f}") == ("40.489", "26.302")


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize(("tau", "groups"), FACTORS)
def test_expansion_keeps_costs_and_widens_the_maps(name: str, tau: int, groups: int) -> None:
    with torch.device("meta"):
        plain, es = create_model(name), create_model(f"es_{name}", tau=tau, groups=groups)
        x = torch.empty(1, 3, 96, 80)
        shapes = [[y.shape for y in maps(model, x)] for model in (plain, es)]
    for one, wide in zip(*shapes, strict=True):
        assert wide == (1, tau * groups * one[1], *one[2:])
    counts = [count(model, (3, 96, 80)) for model in (plain, es)]
    assert counts[0].bops == counts[1].bops and counts[0].flops == counts[1].flops
    weights = [
        [(type(m), m.weight.numel()) for m in model.modules() if isinstance(m, BinaryConv2d | nn.Conv2d)]
        for model in (plain, es)
    ]
    assert weights[0] == weights[1]
    for unit in (m for m in es.modules() if isinstance(m, BinaryUnit)):
        assert (unit.copies, unit.conv.groups, unit.conv.pad_value) == (tau * tau * groups, groups, -1)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUNKS)
def test_without_expansion_es_is_the_plain_trunk(name: str) -> None:
    with narrow():
        plain, es = made(name), made(f"es_{name}", tau=1, groups=1)
    x = image(50, 70)
    for training in (True, False):
        pairs = zip(maps(plain.train(training), x), maps(es.train(training), x), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    state = es.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    assert list(plain.state_dict()) == list(state)


@pytest.mark.parametrize("name", [*TRUNKS, *(f"es_{name}" for name in TRUNKS)])
def test_every_trunk_trains(name: str) -> None:
    with narrow():
        model = made(name)
    spec = model_spec(model)
    assert (spec.kind, spec.input_size[1]) == ("trunk", 600 if "resnet" in name else 300)
    outs = maps(model, image(64, 48))
    assert [y.shape[2:] for y in outs] == ([(4, 3), (2, 2)] if "resnet" in name else [(8, 6), (4, 3)])
    sum(y.square().mean() for y in outs).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", [*TRUNKS, *(f"es_{name}" for name in TRUNKS)])
@pytest.mark.parametrize(("height", "width"), [(50, 70), (33, 47)])
def test_packed_trunks_compute_the_same_maps(name: str, height: int, width: int) -> None:
    options = {"tau": 2, "groups": 2} if name.startswith("es_") else {}
    with narrow():
        model = stir(made(name, **options))
    packed = pack_(copy.deepcopy(model))
    x = image(height, width)
    with torch.no_grad():
        for want, got in zip(maps(model, x), maps(packed, x), strict=True):
            assert torch.equal(want, got) and want.isfinite().all() and want.std() > 0


@pytest.mark.parametrize("variant", ["bidet", "bireal", "xnor"])
def test_a_resnet_trunk_without_extra_shortcuts_trains_and_packs(variant: str) -> None:
    options = {"tau": 2, "groups": 2, "variant": variant, "shortcuts": False}
    with narrow():
        model = made("es_bidet_resnet18", **options)
    sum(y.square().mean() for y in maps(model, image(64, 48))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    units = [m for m in model.modules() if isinstance(m, BinaryUnit)]
    assert len(units) == 16 and all(unit.shortcut is None for unit in units)
    packed = pack_(copy.deepcopy(stir(model)))
    x = image(33, 47)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(maps(model, x), maps(packed, x), strict=True))
    with pytest.raises(InputError, match="variant must be one of bidet, bireal, xnor, got 'real'"):
        made("bidet_resnet18", variant="real")


@pytest.mark.parametrize(("tau", "groups"), [(1, 1), (2, 2)])
def test_the_vgg_trunk_starts_from_xavier(tau: int, groups: int) -> None:
    model = made("es_bidet_vgg16", tau=tau, groups=groups)
    layers = [m for m in model.modules() if isinstance(m, BinaryConv2d | nn.Conv2d)]
    assert len(layers) == 1 + 16 + 4 + 1 + 1
    for layer in layers:
        out, inner, high, wide = layer.weight.shape
        want = (2 / ((out + inner) * high * wide)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(want, rel=5 / layer.weight.numel() ** 0.5), layer


def test_the_scale_is_learned_with_the_weight() -> None:
    """W gets the gradient of alpha = mean |W| beside that of its sign, the activation poly2's.

    Source: papers.md#bidet-conv.
    """
    unit = made("bidet_resnet18").stages.layer1[0]
    x = torch.randn(1, 64, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    unit.conv(x).sum().backward()
    weight = unit.conv.weight.detach().clone().requires_grad_()
    signs = torch.where(x >= 0, 1.0, -1.0).detach()
    carried = (x.clamp(-1, 1) * (2 - x.clamp(-1, 1).abs())).detach().requires_grad_()
    sign_w = weight + (torch.where(weight >= 0, 1.0, -1.0) - weight).detach()
    alpha = weight.abs().mean((1, 2, 3)).view(1, -1, 1, 1)
    total = F.conv2d(F.pad(signs + carried - carried.detach(), (1, 1, 1, 1), value=-1.0), sign_w)
    (total * alpha).sum().backward()
    torch.testing.assert_close(unit.conv.weight.grad, weight.grad, rtol=1e-4, atol=1e-4)
    slope = 2 * (1 - x.detach().abs()).clamp(min=0)
    torch.testing.assert_close(x.grad, carried.grad * slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bidet_resnet18", "es_bidet_resnet18"])
def test_a_read_out_for_pre_training(name: str) -> None:
    with narrow():
        model, bare = made(name, num_classes=5), made(name)
    assert set(model.state_dict()) - set(bare.state_dict()) == {"fc.weight", "fc.bias"}
    x = image(64, 64)
    features = model.eval().layer4(model(x))[:, :128].mean((2, 3))
    torch.testing.assert_close(model.classify(x), F.linear(features, model.fc.weight, model.fc.bias))
    assert model.fc.in_features == 128 and model(x).shape[2:] == (4, 4)
    with pytest.raises(InputError, match="build it with num_classes"):
        bare.classify(x)
    with pytest.raises(InputError, match="num_classes must be a whole number of at least 1, got 0"):
        made(name, num_classes=0)


@pytest.mark.parametrize(("tau", "groups", "shortcuts"), [(1, 1, False), (2, 2, True)])
@pytest.mark.parametrize("name", TRUNKS)
def test_the_classifier_reads_the_trunks_own_maps(name: str, tau: int, groups: int, shortcuts: bool) -> None:
    options = {"tau": tau, "groups": groups, "variant": "bireal", "shortcuts": shortcuts}
    with narrow():
        model, trunk = made(f"es_{name}_classifier", num_classes=5, **options), made(f"es_{name}", **options)
    assert model_spec(model).kind == "classifier" and model_spec(model).input_size == (3, 224, 224)
    own = model.state_dict()
    assert set(own) - set(trunk.state_dict()) == {"fc.weight", "fc.bias"}
    trunk.load_state_dict({key: value for key, value in own.items() if not key.startswith("fc.")})
    model.eval(), trunk.eval()
    width = 128 if "resnet" in name else 256
    for x in (image(64, 64), image(50, 70)):
        features = maps(trunk, x)[-1]
        assert features.shape[1] == tau * groups * width
        want = F.linear(features[:, :width].mean((2, 3)), model.fc.weight, model.fc.bias)
        torch.testing.assert_close(model(x), want)
    with pytest.raises(InputError, match="num_classes must be a whole number of at least 1, got 0"):
        made(f"{name}_classifier", num_classes=0)


@pytest.mark.parametrize("name", TRUNKS)
def test_widths_and_spreads_are_refused_by_layer(name: str) -> None:
    first = "stages.layer1.0" if "resnet" in name else "front.2"
    with pytest.raises(InputError, match=rf"{first} has width 64, which tau=3"):
        made(f"es_{name}", tau=3)
    with pytest.raises(InputError, match=rf"copy_spread of unit {first} must be 0, got 0.5"):
        create_model(f"es_{name}", copy_spread=0.5)


def test_expand_cuts_the_resnet_trunk_at_its_output(caplog: Log) -> None:
    """expand_ keeps what forward promises, its channels, where es_ carries them on; layer4 is outside of forward."""
    with narrow():
        twin = stir(made("es_bidet_resnet18", tau=2, groups=2))
        plain = made("bidet_resnet18")
    assert list(plan_expansion(plain, ESConfig(2, 2)).left) == [f"stages.layer4.{i}.conv" for i in range(4)]
    with caplog.at_level(logging.WARNING, "esbnn"):
        model = expand_(plain, ESConfig(2, 2)).eval()
    (line,) = caplog.messages
    assert model_spec(model) is None and "leaves 4 of 16 layers plain" in line
    own = model.state_dict()
    for key, value in twin.state_dict().items():
        if "layer4" not in key:
            own[key.replace("layer3.3.", "layer3.3.0.")].copy_(value)
    x = image(50, 70)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(y, twin(x)[:, :64])
        assert model.layer4(y).shape == (2, 128, 2, 3)
