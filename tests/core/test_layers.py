"""Binary and expand-shrink layers against slow references written from their definitions."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryLinear,
    Expansion,
    RPReLU,
    RSign,
    SelectChannels,
    Sign,
    SliceChannels,
    SqueezeExcite,
)
from esbnn_core.layers.widths import thermometer_shift


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signs(*shape: int, seed: int = 0) -> Tensor:
    return torch.where(randn(*shape, seed=seed) >= 0, 1.0, -1.0).double()


def slow_es(x: Tensor, weight: Tensor, tau: int, groups: int, stride: int, padding: int) -> Tensor:
    """g contiguous groups of tau*c_i channels, concatenated, then map j mod (c_o/tau) for every carried channel j."""
    parts = []
    for group in range(groups):
        inner = x.shape[1] // groups
        kernels = weight.shape[0] // groups
        channels = x[:, group * inner : (group + 1) * inner]
        rows = weight[group * kernels : (group + 1) * kernels]
        patches = F.unfold(channels, rows.shape[2:], padding=padding, stride=stride)
        parts.append(torch.stack([(patches * row.reshape(1, -1, 1)).sum(1) for row in rows], 1))
    maps = torch.cat(parts, 1)
    side = [(size + 2 * padding - weight.shape[2]) // stride + 1 for size in x.shape[2:]]
    carried = tau * tau * groups * maps.shape[1]
    return torch.stack([maps[:, j % maps.shape[1]] for j in range(carried)], 1).unflatten(2, side)


@pytest.mark.parametrize(("tau", "groups"), list(itertools.product((1, 2, 4), (1, 2))))
@pytest.mark.parametrize(("c_in", "c_out", "kernel", "stride", "padding"), [(3, 8, 3, 1, 1), (5, 16, 2, 2, 0)])
def test_es_convolution_is_the_definition(
    tau: int, groups: int, c_in: int, c_out: int, kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    layer = ESBinaryConv2d(c_in, c_out, kernel, stride, padding, tau=tau, groups=groups, latent_init="kaiming").double()
    assert layer.weight.numel() == c_in * c_out * kernel**2
    x = randn(2, tau * groups * c_in, 6, 7, seed=1)
    bits = torch.where(layer.weight.detach() >= 0, 1.0, -1.0).double()
    want = slow_es(torch.where(x >= 0, 1.0, -1.0).double(), bits, tau, groups, stride, padding)
    assert torch.equal(layer(x, scaled=False), want)
    assert want.shape[1] == tau * groups * c_out
    alpha = layer.weight.detach().abs().mean((1, 2, 3)).repeat(tau * tau * groups).view(-1, 1, 1)
    assert torch.allclose(layer(x), want * alpha, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", [Sign, RSign])
def test_without_expansion_the_es_layer_is_the_plain_layer(kind: type[Sign]) -> None:
    def sign(channels: int, dim: int) -> Sign:
        return RSign(channels, channel_dim=dim) if kind is RSign else Sign(channel_dim=dim)

    torch.manual_seed(3)
    plain = BinaryConv2d(6, 10, 3, 2, 1, activation=sign(6, 1), latent_init="kaiming")
    plain_linear = BinaryLinear(12, 5, activation=sign(12, -1))
    torch.manual_seed(3)
    es = ESBinaryConv2d(6, 10, 3, 2, 1, tau=1, groups=1, activation=sign(6, 1), latent_init="kaiming")
    es_linear = ESBinaryLinear(12, 5, tau=1, groups=1, activation=sign(12, -1))
    for a, b, x in ((plain, es, torch.randn(2, 6, 9, 8)), (plain_linear, es_linear, torch.randn(2, 3, 12))):
        assert list(a.state_dict()) == list(b.state_dict())
        out_a, out_b = a(x), b(x)
        assert torch.equal(out_a, out_b)
        for out in (out_a, out_b):
            out.square().sum().backward()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q) and torch.equal(p.grad, q.grad)


@pytest.mark.parametrize(("tau", "groups"), [(1, 1), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize(("c_in", "kernel"), [(1, 2), (2, 1), (1, 3)])
def test_an_entry_takes_n_plus_one_values_of_one_parity(tau: int, groups: int, c_in: int, kernel: int) -> None:
    n = tau * c_in * kernel**2
    layer = ESBinaryConv2d(c_in, 8, kernel, tau=tau, groups=groups, activation=None)
    possible = set(range(-n, n + 1, 2))
    assert len(possible) == n + 1
    # row i of every group agrees with the all-ones filter at exactly i places: the whole range is met
    nn.init.ones_(layer.weight)
    one = torch.where(torch.arange(n) < torch.arange(n + 1).view(-1, 1), 1.0, -1.0)
    x = one.view(n + 1, 1, -1, kernel, kernel).expand(-1, groups, -1, -1, -1).flatten(1, 2)
    assert {int(v) for v in layer(x, scaled=False)[:, 0].flatten()} == possible
    # and nothing else for any weights
    torch.manual_seed(n)
    nn.init.normal_(layer.weight)
    x = signs(64, tau * groups * c_in, 6, 6).float()
    assert {int(v) for v in layer(x, scaled=False).unique()} <= possible


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 2, 2), (5, 1, 3, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_zero_and_minus_one_padding_differ_by_the_outside_taps(
    kernel: int, stride: int, padding: int, dilation: int, groups: int
) -> None:
    def build(pad_value: int) -> BinaryConv2d:
        torch.manual_seed(1)
        geometry = {"dilation": dilation, "groups": groups, "pad_value": pad_value}
        return BinaryConv2d(6, 4, kernel, stride, padding, activation=None, **geometry).double()

    x = signs(2, 6, 7, 5)
    zero, minus = build(0)(x, scaled=False), build(-1)(x, scaled=False)
    w = torch.where(build(0).weight.detach() >= 0, 1.0, -1.0).double()
    assert torch.equal(zero, F.conv2d(x, w, None, stride, padding, dilation, groups))
    ring = F.pad(x, [padding] * 4, value=-1.0)
    assert torch.equal(minus, F.conv2d(ring, w, None, stride, 0, dilation, groups))
    correction = torch.zeros_like(zero[0])
    for o, row, column in itertools.product(*map(range, correction.shape)):
        for i, j in itertools.product(range(kernel), repeat=2):
            y, z = row * stride + i * dilation - padding, column * stride + j * dilation - padding
            if not (0 <= y < 7 and 0 <= z < 5):
                correction[o, row, column] += w[o, :, i, j].sum()
    assert correction.abs().max() > 0
    assert torch.equal(zero, minus + correction)


@pytest.mark.parametrize("bad", [1, 2, -2, 0.5])
def test_other_pad_values_and_groups_are_refused(bad: int) -> None:
    with pytest.raises(InputError, match="pad_value must be one of 0, -1"):
        BinaryConv2d(4, 4, 3, pad_value=bad)
    with pytest.raises(InputError, match="groups must divide the channels 4 and 6, got 3"):
        BinaryConv2d(4, 6, 3, groups=3)
    with pytest.raises(InputError, match="groups must divide the features 4 and 5, got 2"):
        BinaryLinear(4, 5, groups=2)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("lead", [(4,), (2, 5), (2, 3, 4)])
def test_linear_groups_are_blocks_of_the_matrix(groups: int, lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = BinaryLinear(12, 6, bias=True, groups=groups).double()
    assert layer.weight.shape == (6, 12 // groups)
    matrix = torch.zeros(6, 12).double()
    for o in range(6):
        first = (o // (6 // groups)) * (12 // groups)
        matrix[o, first : first + 12 // groups] = torch.where(layer.weight[o].detach() >= 0, 1.0, -1.0).double()
    x = randn(*lead, 12)
    total = torch.where(x >= 0, 1.0, -1.0).double() @ matrix.T
    assert torch.equal(layer(x, scaled=False), total)
    want = total * layer.weight.detach().abs().mean(1) + layer.bias.detach()
    assert torch.allclose(layer(x), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2), (4, 1), (1, 2)])
def test_es_linear_is_the_1x1_es_convolution(tau: int, groups: int) -> None:
    torch.manual_seed(0)
    conv = ESBinaryConv2d(6, 16, 1, tau=tau, groups=groups)
    linear = ESBinaryLinear(6, 16, tau=tau, groups=groups)
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1))
    assert linear.weight.numel() == 6 * 16
    x = torch.randn(3, tau * groups * 6, 2, 4)
    tokens = linear(x.flatten(2).transpose(1, 2))
    assert torch.equal(tokens.transpose(1, 2).unflatten(2, (2, 4)), conv(x))


@pytest.mark.parametrize(("tau", "groups"), [(1, 1), (2, 1), (2, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("channels", [32, 96])
def test_squeeze_excite_keeps_its_cost(tau: int, groups: int, channels: int) -> None:
    hidden = channels // 4
    gate = SqueezeExcite(channels, 4, Expansion(tau, groups))
    convs = {i: m for i, m in enumerate(gate.se) if isinstance(m, nn.Conv2d)}
    assert list(convs) == ([1, 3] if tau * groups == 1 else [1, 4])
    for conv, (c_in, c_out) in zip(convs.values(), ((channels, hidden), (hidden, channels)), strict=True):
        assert conv.weight.numel() == c_in * c_out  # at one output pixel also the operations
        assert conv.in_channels == tau * groups * c_in and conv.out_channels == c_out // tau
    assert sum(p.numel() for p in gate.parameters()) == 2 * channels * hidden + (channels + hidden) // tau
    x = torch.randn(2, tau * groups * channels, 3, 5)
    out = gate(x)
    assert out.shape == (2, tau * groups * channels, 1, 1)
    first, second = convs.values()
    mean = x.mean((2, 3), keepdim=True)
    inner = F.conv2d(mean, first.weight, first.bias, groups=groups).clamp(min=0).repeat(1, tau * tau * groups, 1, 1)
    want = F.conv2d(inner, second.weight, second.bias, groups=groups).repeat(1, tau * tau * groups, 1, 1)
    assert torch.allclose(out, 1 / (1 + torch.exp(-want)), rtol=1e-5, atol=1e-6)


def test_squeeze_excite_refuses_widths_by_name() -> None:
    for channels, tau in ((24, 2), (4, 1)):
        with pytest.raises(InputError, match=f"features.3.*width {channels // 8}.*tau={tau}"):
            SqueezeExcite(channels, 8, Expansion(tau), name="features.3")


@pytest.mark.parametrize(("shape", "dim"), [((2, 5, 3, 4), 1), ((2, 7, 5), -1), ((3, 5), -1), ((2, 3, 4, 5), -1)])
def test_rsign_and_rprelu_shift_per_channel(shape: tuple[int, ...], dim: int) -> None:
    rsign, rprelu = RSign(5, channel_dim=dim).double(), RPReLU(5, channel_dim=dim).double()
    assert torch.equal(rprelu.slope, torch.full((5,), 0.25).double()) and not rprelu.shift_in.any()
    with torch.no_grad():
        for seed, parameter in enumerate((rsign.shift, rprelu.shift_in, rprelu.slope, rprelu.shift_out)):
            parameter.copy_(randn(5, seed=seed))
    x = randn(*shape, seed=9)
    moved = x.movedim(dim, -1)
    want = torch.where(moved + rsign.shift >= 0, 1.0, -1.0).double()
    assert torch.equal(rsign(x).movedim(dim, -1), want)
    inner = moved + rprelu.shift_in
    want = torch.where(inner >= 0, inner, inner * rprelu.slope) + rprelu.shift_out
    assert torch.equal(rprelu(x).movedim(dim, -1), want)


@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2), (4, 1)])
def test_copy_spread_sets_the_layers_own_shift(tau: int, groups: int) -> None:
    layers = (
        ESBinaryConv2d(8, 16, 3, tau=tau, groups=groups, copy_spread=0.7),
        ESBinaryLinear(8 * tau, 16, tau=tau, groups=groups, copy_spread=0.7),
    )
    for layer, width in zip(layers, (tau * groups * 8, tau * tau * groups * 8), strict=True):
        want = thermometer_shift(width, tau * tau * groups, 0.7)
        assert torch.equal(layer.sign.shift.detach(), want) and want.unique().numel() == tau * tau * groups
    assert ESBinaryConv2d(8, 16, 3, tau=tau, groups=groups).sign.shift is None
    tokens = torch.randn(2, 3, layers[1].in_features)
    assert layers[1](tokens).shape == (2, 3, tau * groups * 16)


@pytest.mark.parametrize("activation", [None, Sign(), RSign(16)])
def test_a_spread_without_an_estimator_is_refused(activation: Sign | None) -> None:
    for layer in (lambda **kw: ESBinaryConv2d(8, 16, 3, **kw), lambda **kw: ESBinaryLinear(8, 16, **kw)):
        with pytest.raises(InputError, match=r"copy_spread=0\.5 must be the name of an estimator"):
            layer(copy_spread=0.5, activation=activation)


def test_slice_keeps_the_first_channels() -> None:
    x = torch.randn(2, 8, 3)
    assert torch.equal(SliceChannels(3)(x), x[:, :3])
    assert torch.equal(SliceChannels(2, dim=-1)(x), x[..., :2])
    chosen = SelectChannels(torch.tensor([3, 0, 3]))
    assert torch.equal(chosen(x), torch.stack([x[:, 3], x[:, 0], x[:, 3]], 1))
    assert not chosen.state_dict()  # the positions follow from the network


def test_evaluation_under_autocast_keeps_exact_sums() -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(300, 2, 3, padding=1).eval()
    x = torch.randn(1, 300, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x, scaled=False), layer(x, scaled=False).round())
        under = layer(x, scaled=False)
    assert torch.equal(under, layer(x, scaled=False)) and under.dtype == torch.float32
