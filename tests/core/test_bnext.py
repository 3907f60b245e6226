"""BNext: the original's tensors, its switches, the mix that stays in [0, 1], the temperature that reaches sign mode."""

import pytest
import torch
from torch import nn

from esbnn_core import InputError, count, create_model, model_spec, pack_
from esbnn_core.layers import Expansion
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.models.bnext import BNextUnit
from esbnn_core.training.latent_clip import attach_latent_clip
from tests.helpers.networks import annealed


@pytest.mark.parametrize(("name", "parameters"), [("bnext_tiny", 30_862_236), ("es_bnext_tiny", 30_943_490)])
def test_tensors_are_as_many_as_in_the_original_files(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    state = model.state_dict()
    assert len(state) == 661 and sum(key.endswith("temperature") for key in state) == 62
    assert sum(p.numel() for p in model.parameters()) == parameters


def unit(kernel: int = 3, elm: bool = False, recoupling: bool = True, stride: int = 1) -> BNextUnit:
    torch.manual_seed(0)
    return BNextUnit(32, kernel, stride, elm, recoupling, Expansion(2, 2), "u")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("elm", [True, False])
@pytest.mark.parametrize("recoupling", [True, False])
def test_the_equations_of_a_unit(elm: bool, recoupling: bool, stride: int) -> None:
    layer = unit(elm=elm, recoupling=recoupling, stride=stride).train()
    x = torch.randn(2, 128, 6, 6)
    u = layer.core(x)
    pooled = nn.functional.avg_pool2d(x, 2) if stride == 2 else x
    shortcut = x if not elm else nn.functional.prelu(x, layer.act_in.weight)
    shortcut = nn.functional.avg_pool2d(shortcut, 2) if stride == 2 else shortcut
    if recoupling:
        u = layer.gate(0.5 * pooled + 0.5 * u) * u
    if elm:
        u = u * shortcut
    want = layer.norm2(u) + shortcut if elm or recoupling else u + shortcut
    torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_mix_is_kept_in_its_range_by_the_optimizer_hook(kernel: int) -> None:
    layer = unit(kernel)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    attach_latent_clip(optimizer, layer)
    with torch.no_grad():
        layer.scale.copy_(torch.linspace(-1, 2, 128).view(1, -1, 1, 1))
        layer.core.conv.weight.copy_(
            torch.linspace(-3, 3, layer.core.conv.weight.numel()).view_as(layer.core.conv.weight)
        )
    optimizer.step()
    assert (layer.scale.min().item(), layer.scale.max().item()) == (0.0, 1.0)
    assert layer.core.conv.weight.abs().max().item() == 1.5


def test_evaluation_clamps_the_mix_of_1x1_units_alone() -> None:
    x = torch.randn(1, 128, 5, 5)
    for kernel in (1, 3):
        layer = unit(kernel).eval()
        with torch.no_grad():
            layer.scale.fill_(1.0)
            at_one = layer(x)
            layer.scale.fill_(1.7)
            assert torch.equal(layer(x), at_one) == (kernel == 1)


def test_switches_change_the_network_and_its_parameters() -> None:
    with torch.device("meta"):
        sizes = {
            (elm, recoupling): len(create_model("es_bnext_tiny", elm=elm, info_recoupling=recoupling).state_dict())
            for elm in (True, False)
            for recoupling in (True, False)
        }
    # as many slopes with ELM (read) as without (unread); no gate, mix and, in FFNs, second norm without recoupling
    assert sizes[True, True] == sizes[False, True] == 661
    assert sizes[False, False] == 661 - 31 * (4 + 1 + 5) and sizes[True, False] == sizes[False, False] + 6 * 5


def test_a_network_that_is_not_annealed_is_not_packed() -> None:
    torch.manual_seed(0)
    model = create_model("bnext_tiny", num_classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"layer blocks\.1\.attention\.core has weights that are not in sign mode"):
        pack_(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(binary_layers(pack_(annealed(model)))) == 0


@pytest.mark.parametrize("elm", [True, False])
@pytest.mark.parametrize("recoupling", [True, False])
@pytest.mark.parametrize(("before", "after"), [(32, 64), (32, 32)])
def test_the_equations_of_a_bnext18_unit(elm: bool, recoupling: bool, before: int, after: int) -> None:
    """Spec 4.9: downsampling after the first PReLU, and the mix takes the residual."""
    torch.manual_seed(0)
    stride = 2 if after > before else 1
    layer = BNextUnit(
        before, 3, stride, elm, recoupling, Expansion(2, 2), "u", out_channels=after, mixes_residual=True
    ).eval()
    x = torch.randn(2, 4 * before, 7, 6)
    residual = nn.functional.prelu(x, layer.act_in.weight) if elm else x
    if stride == 2:
        _, conv, tile, norm = layer.pool
        assert conv.weight.shape == (after // 2, 2 * before, 1, 1)
        pooled = nn.functional.avg_pool2d(residual, 2, ceil_mode=True, count_include_pad=False)
        residual = norm(conv(pooled).repeat(1, tile.copies, 1, 1))
    u = layer.core(x)
    if recoupling:
        with torch.no_grad():
            layer.scale.uniform_(0, 1)
        u = layer.gate(layer.scale * residual + (1 - layer.scale) * u) * u
    if elm:
        u = u * residual
    want = layer.norm2(u) + residual if elm or recoupling else u + residual
    assert want.shape == (2, 4 * after, 4, 3) if stride == 2 else (2, 4 * after, 7, 6)
    torch.testing.assert_close(layer(x), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize(("tau", "groups"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_bnext18_costs_a_resnet18_and_its_gates(stem: str, tau: int, groups: int) -> None:
    with torch.device("meta"):
        model = create_model("es_bnext18", num_classes=1000, stem=stem, tau=tau, groups=groups)
        base = create_model("bireal_resnet18" if stem == "imagenet" else "recu_resnet18", num_classes=1000)
    spec = model_spec(model)
    assert spec is not None and spec.input_size == ((3, 224, 224) if stem == "imagenet" else (3, 32, 32))
    got, want = count(model, spec.input_size), count(base, spec.input_size)
    # four gates a stage of C*C/8 multiply-accumulates twice
    gates = sum(4 * 2 * width * width // 8 for width in (64, 128, 256, 512))
    assert got.bops == want.bops and got.flops == want.flops + gates
    assert got.binary_params == want.binary_params


def test_bnext18_is_in_sign_mode_from_its_own_temperature_on() -> None:
    for name, bound in (("bnext18", 1e-5), ("bnext_tiny", 1e-7)):
        with torch.device("meta"):
            model = create_model(name)
        quantizers = [layer.quantizer for _, layer in binary_layers(model)]
        assert quantizers and all(isinstance(q, Temperature) and q.sign_below == bound for q in quantizers)
    model = create_model("es_bnext18", num_classes=4).eval()
    layer = binary_layers(model)[0][1]
    layer.quantizer.temperature.fill_(1.1e-5)
    weight = layer.weight.detach() * 1e-3  # some inside the clamp of so small a temperature
    assert not layer.quantizer.sign_mode() and layer.quantizer.binary(weight).abs().min() < 1
    layer.quantizer.temperature.fill_(0.99e-5)
    assert layer.quantizer.sign_mode() and layer.quantizer.binary(weight).unique().tolist() == [-1, 1]
    with pytest.raises(InputError, match=r"temperature is not annealed below 1e-05"):
        pack_(model)


def test_bnext18_switches() -> None:
    with torch.device("meta"):
        sizes = {
            (elm, recoupling): len(create_model("bnext18", elm=elm, info_recoupling=recoupling).state_dict())
            for elm in (True, False)
            for recoupling in (True, False)
        }
    # 16 units, half of them ELM; slopes are as many either way
    assert sizes[True, True] == sizes[False, True]
    assert sizes[False, False] == sizes[True, True] - 16 * (4 + 1 + 5)
    assert sizes[True, False] == sizes[False, False] + 8 * 5
    with pytest.raises(InputError, match=r"stem must be one of imagenet, cifar, got 'vgg'"):
        create_model("bnext18", stem="vgg")
