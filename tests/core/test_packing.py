"""Packed networks compute the numbers of the latent ones, bit for bit; what cannot be packed is refused whole."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import InputError, create_model, model_spec
from esbnn_core.kernels.reference import unpack_bits
from esbnn_core.layers import BinaryConv2d, BinaryLinear, ESBinaryConv2d, ESBinaryLinear, RSign
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.packed import match, packed_like, packs
from esbnn_core.packed.layers import PackedConv2d, PackedLayer, PackedLinear
from esbnn_core.packed.units import PackedUnit
from esbnn_core.transforms.binarize import binarize_
from esbnn_core.transforms.binarize_modules import BinaryConfig
from esbnn_core.transforms.pack import pack_, pack_layout_
from esbnn_core.units import BinaryUnit, UnitStyle
from tests.helpers.networks import BRICKS, agree, annealed, narrow, stir
from tests.helpers.options import unit_options

FORMATS = [torch.contiguous_format, torch.channels_last]


def image(name: str, odd: int = 0) -> Tensor:
    """Three images, small for the wide networks without a stem that shrinks them."""
    side = 12 if "recu_resnet18" in name else 36 if "18" in name or "34" in name else 32
    return torch.randn(3, 3, side - odd, side - 3 * odd, generator=torch.Generator().manual_seed(1))


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=7, **options)


@pytest.mark.parametrize("name", BRICKS)
def test_every_network_packs_bit_for_bit(name: str) -> None:
    with narrow():
        model = stir(annealed(small(name)))
    packed = agree(model, image(name))
    x = image(name, odd=1).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(packed(x), model(x))
    units = sum(isinstance(m, BinaryUnit) for m in model.modules())
    assert sum(isinstance(m, PackedUnit) for m in packed.modules()) == units > 0
    assert not any(isinstance(m, BinaryUnit | BinaryConv2d) for m in packed.modules())
    assert not packed.training and model_spec(packed) == model_spec(model)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_es_reactnet_resnet18_with_groups(groups: int, memory_format: torch.memory_format) -> None:
    with narrow():
        model = stir(small("es_reactnet_resnet18", tau=2, groups=groups, copy_spread=0.5), seed=groups)
    for side in (40, 33):
        x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(side))
        agree(model, x.to(memory_format=memory_format))


@pytest.mark.parametrize("name", ["es_reactnet_resnet8", "recu_resnet20"])
def test_float64_packs_too(name: str) -> None:
    model = stir(small(name).double())
    packed = agree(model, image(name).double())
    assert {m.scale.dtype for m in packed.modules() if isinstance(m, PackedLayer)} == {torch.float64}


def test_torchvisions_resnet_binarized_and_packed() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    for config in (BinaryConfig(), BinaryConfig(shift=False, pad_value=-1, learned_scale=True, activation="hardtanh")):
        model = torchvision.models.resnet18(num_classes=5)
        real = {id(p) for p in model.parameters()}
        binarize_(model, config)
        layers = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
        assert len(layers) == 19 and all(id(layer.weight) in real for layer in layers)
        assert type(model.conv1) is nn.Conv2d and type(model.fc) is nn.Linear
        stir(model)
        x = torch.randn(3, 3, 35, 48, generator=torch.Generator().manual_seed(2))
        packed = agree(model, x)
        x = x.to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.equal(packed(x), model(x))
        assert sum(isinstance(m, PackedConv2d) for m in packed.modules()) == 19


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tau": 2, "groups": 2, "inner_act": True},
        {"tau": 4, "act": "prelu", "weight_quantizer": "absmean_centred"},
        {"act": "hardtanh", "shift": False, "ste": "tent", "weight_quantizer": "recu", "learned_scale": True},
        {"norm": False, "pad_value": -1, "dilation": 2, "padding": 2, "act": "none"},
        {"kernel_size": 1, "groups": 4},
        {"tau": 2, "bias": True, "shift": False, "pad_value": -1, "act": "none"},
    ],
    ids=str,
)
def test_a_bare_unit_comes_back_packed(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    channels = 36
    unit = stir(BinaryUnit(channels, 36, **unit_options(shortcut=nn.Identity(), **options)))
    x = torch.randn(2, channels * options.get("tau", 1) * options.get("groups", 1), 7, 6)
    packed = agree(unit, x)
    assert isinstance(packed, PackedUnit)
    words = unpack_bits(packed.weight_bits, unit.conv.weight.shape[1]).movedim(-1, 1)
    assert torch.equal(words, unit.conv.quantizer.binary(unit.conv.weight) > 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["absmean", "sign", "absmean_centred"])
def test_bare_layers_come_back_packed(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 40, 6, 5)
    conv = BinaryConv2d(40, 12, 3, 2, 1, groups=4, bias=bias, weight_quantizer=kind, activation=RSign(40))
    linear = BinaryLinear(40, 12, bias, groups=2, weight_quantizer=kind)
    assert isinstance(agree(stir(conv), x), PackedConv2d)
    assert isinstance(agree(stir(linear), x.movedim(1, -1)), PackedLinear)
    es_conv = ESBinaryConv2d(10, 12, 3, tau=2, groups=2, weight_quantizer=kind, copy_spread=0.5)
    es_linear = ESBinaryLinear(10, 12, tau=2, groups=2, weight_quantizer=kind, copy_spread=0.5)
    agree(stir(es_conv), x)
    agree(stir(es_linear), x.movedim(1, -1))


def test_signs_at_ties_survive_packing() -> None:
    torch.manual_seed(0)
    style = UnitStyle(act="none", weight_quantizer="sign", shift=False)
    units = [BinaryUnit(8, 8, style=style, norm=False) for _ in range(3)]
    model = nn.Sequential(*units).eval()  # whole-number sums without a scale: many of them are exactly 0
    x = torch.randint(-1, 2, (2, 8, 6, 6)).float()
    with torch.no_grad():
        assert (model[0](x) == 0).any() and (x == 0).any()
    agree(model, x)


def temperature_network() -> nn.Sequential:
    torch.manual_seed(0)
    style = UnitStyle(weight_quantizer="temperature", ste="clip", clip=1.5)
    layers = [BinaryUnit(8, 8, style=style) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)


def refused_unchanged(model: nn.Module, x: Tensor, *words: str) -> None:
    before = [(name, type(m)) for name, m in model.named_modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    training = [m.training for m in model.modules()]
    with pytest.raises(InputError) as error:
        pack_(model)
    for word in words:
        assert word in str(error.value)
    assert [(name, type(m)) for name, m in model.named_modules()] == before
    assert [m.training for m in model.modules()] == training
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]) or value.isnan().any()
    assert model(x).requires_grad


def test_a_temperature_that_is_not_annealed_is_refused() -> None:
    model = temperature_network()
    quantizers = [m for m in model.modules() if isinstance(m, Temperature)]
    quantizers[0].temperature.fill_(1e-8)
    x = torch.randn(2, 3, 8, 8)
    refused_unchanged(model, x, "layer 2", "temperature")
    quantizers[1].temperature.fill_(0.9**153)
    agree(stir(model), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = small("reactnet_resnet8")
    with torch.no_grad():
        model.stages.layer2[1].conv.weight[0, 0, 0, 0] = value
    refused_unchanged(model, torch.randn(2, 3, 16, 16), "stages.layer2.1", "finite")


def test_batch_statistics_and_real_networks_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BinaryUnit(8, 8))
    model[1].norm = nn.BatchNorm2d(8, track_running_stats=False)
    refused_unchanged(model, torch.randn(2, 3, 8, 8), "unit 1", "BatchNorm")
    with pytest.raises(InputError, match="no binary layer"):
        pack_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))


def test_what_a_packed_network_holds() -> None:
    model = stir(small("es_reactnet_resnet8", groups=2))
    packed = pack_(copy.deepcopy(model))
    units = [m for m in model.modules() if isinstance(m, BinaryUnit)]
    for unit, small_unit in zip(units, (m for m in packed.modules() if isinstance(m, PackedUnit)), strict=True):
        out, inner, *kernel = unit.conv.weight.shape
        assert small_unit.weight_bits.shape == (out, *kernel, -(-inner // 32))
        assert small_unit.scale.shape == small_unit.bias.shape == (unit.norm.num_features,)
        assert small_unit.rprelu.shape == (3, unit.norm.num_features)
        assert {name for name, _ in small_unit.named_parameters()} <= {
            name for name, _ in unit.named_parameters() if name.startswith("shortcut.")
        }


@pytest.mark.parametrize("name", ["es_reactnet_resnet8", "recu_resnet20", "bireal_resnet18"])
def test_an_empty_layout_takes_a_packed_state(name: str) -> None:
    with narrow():
        model, layout = stir(small(name)), pack_layout_(small(name))
    x = image(name)
    want = model(x)
    packed = pack_(model)
    layout.load_state_dict(packed.state_dict())
    assert torch.equal(layout(x), want)


def test_the_most_specific_latent_class_decides_what_packs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inner(BinaryUnit):
        pass

    class Outer(Inner):
        pass

    class Foreign(nn.Module):
        pass

    monkeypatch.setattr(match, "_PACKED_BY_LATENT", dict(match._PACKED_BY_LATENT))
    assert type(packed_like(Outer(4, 4))) is PackedUnit and packed_like(Foreign()) is None

    @packs(Inner)
    class PackedInner(PackedUnit):
        pass

    assert type(packed_like(Inner(4, 4))) is type(packed_like(Outer(4, 4))) is PackedInner
    assert type(packed_like(BinaryUnit(4, 4))) is PackedUnit
    packed = pack_(nn.Sequential(stir(Outer(4, 4)), stir(BinaryUnit(4, 4))))
    assert [type(module) for module in packed] == [PackedInner, PackedUnit]
    assert isinstance(packed_like(ESBinaryConv2d(8, 8, 3, tau=2)), PackedConv2d)


def test_a_module_under_two_names_is_packed_once() -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(8, 8, shortcut=nn.Identity())
    model = stir(nn.Sequential(unit, nn.Hardtanh(), unit))
    packed = agree(model, torch.randn(2, 8, 5, 5))
    assert packed[0] is packed[2] and isinstance(packed[0], PackedUnit)


def test_a_packed_layer_answers_for_its_geometry_as_the_latent_one() -> None:
    convs = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, (3, 5), 2, (1, 0), 2, groups=2), nn.Conv2d(6, 2, 1)]
    latent = binarize_(nn.Sequential(*convs, nn.Flatten(), nn.Linear(8, 12), nn.Linear(12, 2)))
    packed = pack_(copy.deepcopy(latent))
    asked = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    for key in asked:
        assert getattr(packed[1], key) == getattr(latent[1], key) == getattr(convs[1], key)
    for key in ("in_features", "out_features", "groups"):
        assert getattr(packed[4], key) == getattr(latent[4], key)


@pytest.mark.parametrize("channels", [1, 24])
@pytest.mark.parametrize("size, stride", [((1, 1), 1), ((2, 2), 2), ((3, 3), 1)])
def test_a_real_layer_after_a_packed_one_reads_the_strides_that_it_read(
    channels: int, size: tuple[int, int], stride: int
) -> None:
    """A map of one pixel is contiguous and channels_last at once, and torch sums by its strides."""
    layer = BinaryConv2d(channels, 40, 3, stride, padding=1).eval()
    for memory_format in FORMATS:
        x = torch.randn(2, channels, *size).to(memory_format=memory_format)
        with torch.no_grad():
            latent, packed = layer(x), pack_(copy.deepcopy(layer))(x)
        assert packed.stride() == latent.stride() and torch.equal(packed, latent)
