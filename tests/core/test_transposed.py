"""Binary transposed convolutions: exact sums, filters by output channel, packed alike, and through every verb."""

import copy
import itertools
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from esbnn_core import BinaryConfig, ESConfig, InputError, binarize_, count, expand_, pack_, plan_expansion
from esbnn_core.checkpoint import load_checkpoint, save_checkpoint
from esbnn_core.layers import BinaryConv2d, BinaryConvTranspose2d, ESBinaryConvTranspose2d, Expansion, RSign
from esbnn_core.layers.base import binary_layers, exact_zeros
from esbnn_core.layers.conv_transpose import filters_of
from esbnn_core.layers.quantizers import WEIGHT_QUANTIZERS, Temperature
from esbnn_core.packed import PackedConvTranspose2d
from esbnn_core.training.on_bits import bit_training_report, train_on_bits_
from esbnn_core.transforms.expand_modules import expand_layer
from esbnn_core.transforms.expand_shapes import layer_output_order
from esbnn_core.transforms.real_weights import real_weights_
from tests.helpers.expansion import assert_costs_stay_it_trains_and_packs, assert_two_groups_compute_plain, stirred


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(layer: BinaryConvTranspose2d, seed: int = 0) -> BinaryConvTranspose2d:
    """The layer, in evaluation, with drawn weights, shifts and biases."""
    with torch.no_grad():
        for at, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + at))
    return layer.eval()


@pytest.mark.parametrize(("stride", "kernel"), itertools.product((1, 2, 3), (1, 2, 3, 4)))
def test_the_sums_are_exact_and_packed_is_latent_in_every_geometry(stride: int, kernel: int) -> None:
    dice, ran = random.Random(10 * stride + kernel), 0
    while ran < 8:
        steps, kernels = (stride, dice.randint(1, 3)), (kernel, dice.randint(1, 4))
        dilation = (dice.choice((1, 1, 2, 3)), dice.choice((1, 2)))
        padding = (dice.randint(0, 3), dice.randint(0, 2))
        extra = tuple(dice.randrange(max(pair)) for pair in zip(steps, dilation, strict=True))
        groups, size = dice.choice((1, 1, 2, 3)), (dice.randint(1, 6), dice.randint(1, 5))
        channels = groups * dice.choice((1, 3, 35)), groups * dice.choice((1, 2, 5))
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(size, steps, padding, dilation, kernels, strict=True)
        ]
        if min(least) < 1:
            continue
        shape = (*channels, kernels, steps, padding, extra, groups, ran % 2 == 0, dilation)
        layer = drawn(BinaryConvTranspose2d(*shape, activation=RSign(channels[0])), ran)
        x = draw(2, channels[0], *size, seed=ran)
        shifted = x + layer.sign.shift.view(1, -1, 1, 1)
        want = F.conv_transpose2d(signs(shifted), signs(layer.weight), None, steps, padding, extra, groups, dilation)
        with torch.no_grad():
            assert torch.equal(layer(x, scaled=False).double(), want), shape
            y = layer(x)
            packed = pack_(layer)(x)
        assert packed.shape == y.shape and torch.equal(packed, y), shape
        ran += 1


def test_an_output_that_no_input_reaches_is_the_bias_alone() -> None:
    layer = drawn(BinaryConvTranspose2d(3, 2, 1, 3, output_padding=1, bias=True))
    x = draw(2, 3, 4, 5)
    for y in (layer(x), pack_(copy.deepcopy(layer))(x)):
        assert y.shape == (2, 2, 11, 14)
        reached = torch.zeros(11, 14, dtype=torch.bool)
        reached[::3, ::3] = True
        alone = y.permute(0, 2, 3, 1)[:, ~reached]
        assert torch.equal(alone, layer.bias.expand_as(alone)) and (y[..., reached] != layer.bias.view(2, 1)).any()


def as_convolution(layer: BinaryConvTranspose2d, quantizer: object, padding: int) -> BinaryConv2d:
    """With stride 1: the convolution whose filters are turned around."""
    kernel, groups = layer.kernel_size, layer.groups
    other = BinaryConv2d(
        layer.in_channels,
        layer.out_channels,
        kernel,
        padding=(kernel[0] - 1 - padding, kernel[1] - 1 - padding),
        groups=groups,
        bias=True,
        weight_quantizer=copy.deepcopy(quantizer),
        learned_scale=True,
    ).double()
    state = {key: value for key, value in layer.state_dict().items() if key != "weight"}
    other.load_state_dict({**state, "weight": filters_of(layer.weight.detach(), groups).flip(2, 3)})
    return other


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", WEIGHT_QUANTIZERS)
def test_quantizers_see_one_filter_an_output_channel(name: str, groups: int) -> None:
    shape = (6, 12, (3, 2), 1, 1, 0, groups, True)
    layer = drawn(BinaryConvTranspose2d(*shape, weight_quantizer=name, learned_scale=True)).double().train()
    conv = as_convolution(layer, layer.quantizer, 1)
    x = draw(2, 6, 5, 4).double().requires_grad_()
    other = x.detach().clone().requires_grad_()
    for net, given in ((layer, x), (conv, other)):
        net(given).square().sum().backward()
    torch.testing.assert_close(layer(x), conv(other), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-11, atol=1e-11)
    grad = filters_of(layer.weight.grad, groups).flip(2, 3)
    torch.testing.assert_close(grad, conv.weight.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.learned_scale.grad, conv.learned_scale.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 6, 1), (4, 6, 2), (6, 3, 3)])
def test_the_scale_of_an_output_channel_is_the_mean_of_its_own_weights(inputs: int, outputs: int, groups: int) -> None:
    layer = drawn(BinaryConvTranspose2d(inputs, outputs, (2, 3), 2, groups=groups))
    wide, deep = outputs // groups, inputs // groups
    for channel in range(outputs):
        group, place = channel // wide, channel % wide
        own = layer.weight[group * deep : (group + 1) * deep, place]  # torch's layout, (I, O/groups, KH, KW)
        torch.testing.assert_close(layer.output_scale()[channel], own.abs().mean())
        assert torch.equal(layer.filters[channel], own)


def test_zeros_are_counted_in_filters() -> None:
    layer = drawn(BinaryConvTranspose2d(3, 2, (2, 3), weight_quantizer="recu"))
    with torch.no_grad():
        layer.weight[:, 1] = 0.5  # one filter is constant: less its mean it is 0
    assert exact_zeros(layer) == 3 * 2 * 3


def test_real_weights_convolve_signs() -> None:
    layer = real_weights_(drawn(BinaryConvTranspose2d(6, 4, 3, 2, 1, 1, 2)), fresh=True)
    bound = (2 * 9) ** -0.5  # torch's start of such a layer
    assert bound / 2 < layer.weight.abs().max() <= bound
    x = draw(2, 6, 4, 5)
    want = F.conv_transpose2d(signs(x), layer.weight.double(), None, 2, 1, 1, 2)
    torch.testing.assert_close(layer(x).double(), want, rtol=1e-5, atol=1e-5)


def test_an_expanded_layer_with_groups_keeps_each_group_to_itself() -> None:
    layer, expansion, groups = drawn(BinaryConvTranspose2d(8, 12, 2, 2, groups=2)), Expansion(2, 1), 2
    row = nn.Sequential(*expand_layer("up", layer, expansion))
    group_of_input = torch.arange(16) % 8 // 4
    group_of_output = layer_output_order(layer, expansion) % 12 // 6
    x = draw(1, 16, 3, 3)
    for group in range(groups):
        flipped = torch.where((group_of_input == group).view(1, -1, 1, 1), -x, x)
        changed = (row(flipped) != row(x)).flatten(2).any(2)[0]
        assert torch.equal(changed, group_of_output == group)


def test_an_expanded_layer_with_one_copy_is_the_plain_layer() -> None:
    torch.manual_seed(1)
    plain = drawn(BinaryConvTranspose2d(8, 12, 4, 2, 1))
    one = ESBinaryConvTranspose2d(8, 12, 4, 2, 1, tau=1, groups=1).eval()
    one.load_state_dict(plain.state_dict())
    x = draw(2, 8, 5, 3)
    assert torch.equal(one(x), plain(x))
    wide = ESBinaryConvTranspose2d(8, 12, 3, 2, 1, 1, tau=2, groups=3, copy_spread=1.0)
    assert wide.weight.numel() == 8 * 12 * 9 and wide(draw(2, 48, 5, 3)).shape == (2, 72, 10, 6)
    assert "output_padding=(1, 1), groups=3, tau=2, copies=12" in repr(wide)
    with pytest.raises(InputError, match="up has width 12, which tau=5 times groups=1 does not divide"):
        ESBinaryConvTranspose2d(8, 12, 3, tau=5, name="up")


def test_what_torch_refuses_is_refused() -> None:
    with pytest.raises(InputError, match=r"output_padding must be .* smaller than stride or dilation, .* got \(2, 2\)"):
        BinaryConvTranspose2d(4, 4, 3, 2, output_padding=2)
    with pytest.raises(InputError, match="groups must divide the channels 4 and 6, got 4"):
        BinaryConvTranspose2d(4, 6, 3, groups=4)
    layer = drawn(BinaryConvTranspose2d(4, 4, 3, 2, 1))
    assert torch.equal(layer(draw(1, 4, 3, 5), output_size=(6, 9)), F.pad(layer(draw(1, 4, 3, 5), (6, 10)), (0, -1)))
    for each in (layer, pack_(copy.deepcopy(layer))):
        with pytest.raises(
            InputError, match=r"output_size must be 9 to 10 along dimension 3 for an input of 5.*got 11"
        ):
            each(draw(1, 4, 3, 5), output_size=(6, 11))
    with pytest.raises(ValueError, match="output of at least 1x1 pixels, got 1x1, which gives"):
        pack_(drawn(BinaryConvTranspose2d(4, 4, 1, 1, 1)))(draw(1, 4, 1, 1))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2, output_padding=2), nn.Conv2d(4, 4, 1))
    with pytest.raises(InputError, match="layer 1 cannot be binary, output_padding must be"):
        binarize_(net)


class OwnUp(nn.ConvTranspose2d):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return 2 * super().forward(x, output_size)


def test_binarize_takes_the_parameters_and_the_geometry() -> None:
    up = nn.ConvTranspose2d(8, 6, (3, 4), (2, 3), (1, 0), (1, 2), 2, True, (1, 1))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), up, nn.PReLU(), nn.Conv2d(6, 2, 1))
    shape, state = model(draw(2, 3, 7, 6)).shape, list(up.state_dict())
    binarize_(model, BinaryConfig(shift=False, pad_value=-1, weight_quantizer="sign"))
    layer = model[1]
    assert isinstance(layer, BinaryConvTranspose2d) and layer.weight is up.weight and layer.bias is up.bias
    assert model(draw(2, 3, 7, 6)).shape == shape and list(layer.state_dict()) == state
    want = F.conv_transpose2d(signs(draw(1, 8, 4, 4)), signs(up.weight), up.bias.double(), (2, 3), (1, 0), (1, 2), 2)
    torch.testing.assert_close(layer(draw(1, 8, 4, 4)).double(), want)
    own = nn.Sequential(nn.Conv2d(3, 8, 3), OwnUp(8, 8, 2, 2), nn.Conv2d(8, 2, 1))
    with pytest.raises(InputError, match=r"1 \(1\) of the layers are of the subclass OwnUp"):
        binarize_(own)
    ends = nn.Sequential(nn.ConvTranspose2d(4, 8, 4), nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 3, 4))
    assert [name for name, _ in binary_layers(binarize_(ends))] == ["1"]  # a generator's first and last stay real


class UNet(nn.Module):
    """One step down and up again, with a skip; `sized` hands the size of the skip to the transposed convolution."""

    def __init__(self, kernel: int = 2, padding: int = 0, groups: int = 1, sized: bool = False) -> None:
        super().__init__()
        self.sized = sized
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 16, kernel, 2, padding, groups=groups)
        self.norm = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
        self.merge = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        y = self.down(skip)
        y = self.norm(self.up(y, output_size=skip.size()) if self.sized else self.up(y))
        out: Tensor = self.head(self.merge(torch.cat([skip, y], 1)))
        return out


KINDS = [(2, 0, 1, False), (4, 1, 4, False), (2, 0, 16, False), (3, 1, 1, True)]
"""Kernel as large as the stride, larger with groups, depthwise in the output, and with the size of the skip."""


def unet(*kind: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return binarize_(UNet(*kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_unet_goes_through_the_verbs(kind: tuple[int, ...]) -> None:
    for tau, groups in ((2, 1), (4, 2)):
        model, config, x = stirred(unet(*kind)), ESConfig(tau, groups), draw(2, 3, 12, 10)
        before = count(model, (3, 12, 10))
        (row,) = (row for row in before.layers if row.name == "up")
        assert row.binary and row.macs == 32 * 16 // kind[2] * kind[0] ** 2 * 6 * 5
        plan = plan_expansion(model, config)
        assert set(plan.expanded) == {"down.0", "up", "merge.0"} and not plan.left
        expanded = copy.deepcopy(model)
        assert_costs_stay_it_trains_and_packs(expanded, x, config)
        assert any(isinstance(part, PackedConvTranspose2d) for part in expanded.modules())
        after = count(expanded, (3, 12, 10))
        assert (after.bops, after.flops, after.binary_params) == (before.bops, before.flops, before.binary_params)
        assert after.packed_bytes == after.latent_bytes
        assert count(expand_(model, config), (3, 12, 10)).packed_bytes == after.packed_bytes
    assert_two_groups_compute_plain(stirred(unet(*kind)), draw(2, 3, 12, 10))


def test_a_real_transposed_convolution_among_binary_layers_is_expanded_too() -> None:
    model = UNet(*KINDS[3])
    binarize_(model, BinaryConfig(filter_fn=lambda name, module: name in ("down.0", "merge.0")))
    assert set(plan_expansion(model, ESConfig(2, 1)).expanded) == {"down.0", "up", "merge.0"}
    assert_two_groups_compute_plain(stirred(copy.deepcopy(model)), draw(2, 3, 12, 10))
    assert_costs_stay_it_trains_and_packs(model, draw(2, 3, 12, 10), ESConfig(4, 2))


@pytest.mark.parametrize(("ste", "size"), [("poly2", None), ("clip", (11, 8)), ("identity", None)])
def test_training_on_bits_has_the_gradients_of_the_plain_layer(ste: str, size: tuple[int, int] | None) -> None:
    layer = BinaryConvTranspose2d(33, 6, (4, 3), 2, 1, 0, 3, True, activation=RSign(33, ste))  # type: ignore[arg-type]
    plain = drawn(layer, 5).double().train()
    bits = train_on_bits_(copy.deepcopy(plain))
    assert bit_training_report(bits) == {"": ""}
    inputs = [draw(2, 33, 5, 4).double().requires_grad_() for _ in range(2)]
    outputs = [net(x, output_size=size) for net, x in zip((plain, bits), inputs, strict=True)]
    assert torch.equal(*outputs)
    for y in outputs:
        (y * draw(*y.shape)).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-12, atol=1e-12)
    for (name, p), q in zip(plain.named_parameters(), bits.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-12, atol=1e-11, msg=name)


def test_a_unet_trains_on_bits() -> None:
    models = [unet(*KINDS[1]).double() for _ in range(2)]
    train_on_bits_(models[1])
    assert set(bit_training_report(models[1]).values()) == {""}
    x = draw(2, 3, 8, 8).double()
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(x).square().mean().backward()
        optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-9, atol=1e-12)


def test_a_packed_network_is_saved_loaded_and_narrowed(tmp_path: Path) -> None:
    model = expand_(stirred(unet(*KINDS[1])), ESConfig(2, 2)).eval()
    x = draw(2, 3, 12, 10)
    packed = pack_(copy.deepcopy(model))
    with torch.no_grad():
        want = packed(x)
        save_checkpoint(packed, tmp_path / "packed.safetensors")
        other = expand_(stirred(unet(*KINDS[1], seed=7), 7), ESConfig(2, 2))
        loaded = load_checkpoint(tmp_path / "packed.safetensors", other)
        assert torch.equal(loaded(x), want)
        up = next(part for part in loaded.modules() if isinstance(part, PackedConvTranspose2d))
        y = draw(1, up.in_channels, 3, 3).bfloat16()
        assert torch.equal(up.bfloat16()(y), up(y.float()).bfloat16()) and up.scale.dtype == torch.float32
        flat = y.float().contiguous(memory_format=torch.channels_last)
        assert torch.equal(up(flat), up(y.float())) and up(flat).is_contiguous(memory_format=torch.channels_last)
    latent = next(part for part in model.modules() if isinstance(part, BinaryConvTranspose2d))
    for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups"):
        assert getattr(up, key) == getattr(latent, key), key


def test_weights_that_are_not_signs_are_not_packed() -> None:
    layer = BinaryConvTranspose2d(4, 4, 2, 2, weight_quantizer=Temperature())
    with pytest.raises(InputError, match="not in sign mode"):
        pack_(nn.Sequential(layer))


@pytest.mark.slow
def test_an_exported_layer_runs_on_any_batch_and_size() -> None:
    layer = pack_(drawn(BinaryConvTranspose2d(8, 6, (3, 2), (2, 3), 1, (1, 0), 2)))
    with torch.no_grad():
        places = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
        program = torch.export.export(layer, (draw(2, 8, 4, 5),), dynamic_shapes=places).module()
        for x in (draw(3, 8, 7, 3), draw(1, 8, 3, 9)):
            assert torch.equal(program(x), layer(x))


@pytest.mark.slow
def test_an_exported_unet_runs_on_any_batch_and_size() -> None:
    model, x = stirred(unet(*KINDS[3])).eval(), draw(2, 3, 13, 10)
    with torch.no_grad():
        latent = torch.export.export(model, (x,)).module()(x)
        packed = pack_(model)
        assert torch.equal(latent, packed(x))
        places = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
        program = torch.export.export(packed, (x,), dynamic_shapes=places).module()
        for other in (draw(3, 3, 8, 14), draw(1, 3, 11, 9)):  # sizes of both parities
            assert torch.equal(program(other), packed(other))
