"""expand_ through operations that move channels: concatenations, splits, shuffles, slices, tokens, gates, groups.

The networks are judged as in test_expand.py: with tau = 1 and g = 2 they compute the plain network, which takes every
copy of every channel in its place; and costs, gradients and packed outputs hold for other factors.
"""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.ops import StochasticDepth

from esbnn_core import InputError
from esbnn_core.layers import BinaryConv2d, RSign, SelectChannels, SliceChannels, Tile
from esbnn_core.layers.base import binary_layers
from esbnn_core.transforms.binarize import BinaryConfig, binarize_
from esbnn_core.transforms.expand import ESConfig, expand_, plan_expansion
from esbnn_core.transforms.expand_layout import Layout, joined, pixel_shuffled, runs, shuffled, unshuffled
from tests.helpers.expansion import (
    assert_costs_stay_it_trains_and_packs,
    assert_two_groups_compute_plain,
    stirred,
)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: int) -> nn.Sequential:
    """A binary convolution and its norm."""
    sign = RSign(inputs)
    binary = BinaryConv2d(inputs, outputs, kernel, padding=kernel // 2, bias=True, activation=sign, **options)
    return nn.Sequential(binary, nn.BatchNorm2d(outputs), nn.PReLU(outputs))


class Net(nn.Module):
    """A stem of 16 channels, an operation, a classifier of `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Linear(width, 5)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.stem(x)).mean((2, 3)))


class Dense(Net):
    """As DenseNet: every layer reads all before it, through a norm over runs of several widths."""

    def __init__(self) -> None:
        super().__init__(48)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(4))
        self.convs = nn.ModuleList(conv(16 + 8 * i, 8, 3) for i in range(4))
        self.last = nn.GroupNorm(8, 48)  # needs whole copies

    def between(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(norm(x))], 1)
        return self.last(x)


class Shuffle(nn.Module):
    """As ShuffleNet: half of the channels go by, then both are shuffled by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(8, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8), conv(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        x = torch.cat((one, self.branch(other)), dim=1)
        number, channels, height, width = x.size()
        x = x.view(number, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(number, -1, height, width)


class Shuffles(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.blocks = nn.Sequential(Shuffle(), Shuffle(), Shuffle(), nn.ChannelShuffle(4), conv(16, 16, 3))

    def between(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        first, rest = x[:, : x.shape[1] // 4], x[:, x.shape[1] // 4 :]
        return torch.cat([rest, first], 1)


class Literal(nn.Module):
    """Splits by numbers in its code, so that its inside is nominal."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.inside(x), [4, 12], 1)
        return torch.cat([other, one], 1)


class Literals(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.before, self.cut, self.then = conv(16, 16), Literal(), nn.Sequential(conv(16, 16), conv(16, 16))

    def between(self, x: Tensor) -> Tensor:
        return self.then(self.cut(self.before(x)))


class Pixels(Net):
    """A small U-Net: unshuffles and shuffles of pixels, a skip, an interpolation to the size of another tensor."""

    def __init__(self) -> None:
        super().__init__(16)
        self.down = nn.Sequential(nn.PixelUnshuffle(2), conv(64, 32, 3))
        self.up = nn.Sequential(conv(32, 64), nn.PixelShuffle(2), StochasticDepth(0.0, "row"))
        self.merge = conv(16 + 16 + 32, 16, 3)

    def between(self, x: Tensor) -> Tensor:
        y = self.down(x)
        wide = F.interpolate(y, size=x.shape[-2:], mode="nearest")
        return self.merge(torch.cat([self.up(y), x, wide], 1))


class Tokens(Net):
    """As ConvNeXt V2: depthwise, permute, LayerNorm, linear layers, global response norm, LayerScale."""

    def __init__(self) -> None:
        super().__init__(16)
        self.spread = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.scale = nn.LayerNorm(16), nn.Parameter(torch.rand(16, 1, 1))
        self.block = binarize_(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), GlobalResponseNorm(32), nn.Dropout(0.0), nn.Linear(32, 16)),
            BinaryConfig(filter_fn=lambda _, module: isinstance(module, nn.Linear)),
        )
        self.by_hand = nn.ParameterList([torch.rand(16), torch.rand(16)])

    def between(self, x: Tensor) -> Tensor:
        y = self.block(self.norm(self.spread(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.by_hand[0][:, None, None] * x + self.by_hand[1].view(1, -1, 1, 1)


class Gates(Net):
    """Squeeze-excite of torchvision and timm, efficient channel attention, gates by views."""

    def __init__(self) -> None:
        super().__init__(16)
        self.first = nn.Sequential(conv(16, 16), torchvision.ops.SqueezeExcitation(16, 8), conv(16, 16))
        self.second = nn.Sequential(timm.layers.SqueezeExcite(16, rd_channels=8), timm.layers.EcaModule(16))
        self.gate = nn.Sequential(nn.Linear(16, 8), nn.PReLU(), nn.Linear(8, 16), nn.Sigmoid())
        self.act = nn.InstanceNorm2d(16, affine=True)

    def between(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.first(x)))
        number, channels = x.size()[:2]
        gate = self.gate(F.adaptive_avg_pool2d(x, 1).view(number, channels)).view(number, channels, 1, 1)
        return x * gate.expand_as(x)


class Untraceable(nn.Module):
    """Looks at values, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x if x.sum() > 0 else -x)


class Around(Net):
    def __init__(self) -> None:
        super().__init__(16)
        self.before, self.then = nn.Sequential(conv(16, 16), conv(16, 16)), nn.Sequential(conv(16, 16), conv(16, 16))
        self.middle = Untraceable()

    def between(self, x: Tensor) -> Tensor:
        return self.then(self.middle(self.before(x)))


class TwoReaders(Net):
    """The tensor that is split by halves has another reader, which gets the same order."""

    def __init__(self) -> None:
        super().__init__(16)
        self.before, self.branch = conv(16, 16), conv(8, 8)

    def between(self, x: Tensor) -> Tensor:
        x = self.before(x)
        one, other = torch.chunk(x, 2, 1)
        return x + torch.cat([self.branch(other), one], 1)


class Groups(Net):
    """Convolutions with groups: as many filters in each as copies, or fewer; between different orders."""

    def __init__(self) -> None:
        super().__init__(32)
        self.wide = conv(16, 32, 3, groups=2)
        self.narrow = conv(32, 32, 3, groups=16)
        self.depthwise = conv(32, 32, 3, groups=32)
        self.multiplied = conv(16, 32, 3, groups=16)

    def between(self, x: Tensor) -> Tensor:
        return self.depthwise(self.narrow(self.wide(x))) + self.multiplied(x)


NETS: dict[str, Callable[[], nn.Module]] = {
    net.__name__: net for net in (Dense, Shuffles, Literals, Pixels, Tokens, Gates, Groups, Around, TwoReaders)
}
each_net = pytest.mark.parametrize("name", NETS)


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    return stirred(NETS[name]()), torch.randn(2, 3, 8, 6)


@each_net
def test_two_groups_of_plain_weights_compute_the_plain_network(name: str) -> None:
    assert_two_groups_compute_plain(*network(name))


@pytest.mark.parametrize("tau, groups", [(2, 1), (2, 2), (4, 1)])
@each_net
def test_costs_stay_it_trains_and_packs(name: str, tau: int, groups: int) -> None:
    assert_costs_stay_it_trains_and_packs(*network(name), ESConfig(tau, groups, copy_spread=0.1))


def test_all_their_layers_are_expanded() -> None:
    for name in NETS:
        model, _ = network(name)
        plan = plan_expansion(model)
        left = {"middle.inside.0"} if name == "Around" else set()
        names = {name for name, _ in binary_layers(model)}
        assert len(names) > 1 and names - set(plan.expanded) == left == set(plan.left) & names, (name, plan.left)
    reason = plan_expansion(network("Around")[0]).left["middle.inside.0"]
    assert reason.startswith("it is in middle, whose forward cannot be traced by torch.fx (")


SMALL: dict[str, Callable[[], nn.Module]] = {
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 3), 16, 2, num_classes=5),
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 32], num_classes=5),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=5),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=5),
    "efficientnet": lambda: torchvision.models.efficientnet_b0(num_classes=5, stochastic_depth_prob=0.0),
    "regnet": lambda: torchvision.models.regnet_y_400mf(num_classes=5),
    "googlenet": lambda: torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False),
    "segmentation": lambda: Out(torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None)),
    "timm/convnextv2": lambda: timm.create_model("convnextv2_atto", num_classes=5, depths=(1, 1, 1, 1)),
    "timm/ghostnet": lambda: timm.create_model("ghostnet_050", num_classes=5, drop_rate=0.0),
    "timm/hrnet": lambda: timm.create_model("hrnet_w18_small", num_classes=5),
}


class Out(nn.Module):
    """A segmentation network as one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)["out"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_networks_of_libraries(name: str) -> None:
    torch.manual_seed(3)
    plain, x = stirred(binarize_(SMALL[name]())), torch.randn(2, 3, 64, 64)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plan = plan_expansion(plain)
    share = sum(layer.weight.numel() for each, layer in binary_layers(plain) if each in plan.expanded)
    assert share >= 0.9 * sum(layer.weight.numel() for _, layer in binary_layers(plain)), plan.left
    assert_two_groups_compute_plain(plain, x)
    assert_costs_stay_it_trains_and_packs(plain.float(), x, ESConfig())


@pytest.mark.parametrize("tau, groups", [(2, 1), (2, 3), (3, 2)])
def test_a_depthwise_layer_sums_tau_channels_of_as_many_copies(tau: int, groups: int) -> None:
    channels = 12
    model = nn.Sequential(
        nn.Conv2d(3, channels, 1),
        nn.BatchNorm2d(channels),
        BinaryConv2d(channels, channels, 3, padding=1, groups=channels, weight_quantizer="sign"),
        nn.BatchNorm2d(channels),
        BinaryConv2d(channels, channels, 1),
        nn.BatchNorm2d(channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 2),
    )
    expand_(model, ESConfig(tau, groups))
    select, layer, tile = model[2]
    x = torch.randn(2, tau * groups * channels, 5, 4)
    copies = x.sign().unflatten(1, (tau * groups, channels))
    weight, merged = layer.quantizer.binary(layer.weight), channels // tau
    want = []
    for f in range(merged):
        parts = [copies[:, i * groups + f % groups, f + i * merged] for i in range(tau)]
        want.append(F.conv2d(torch.stack(parts, 1), weight[f : f + 1], padding=1))
    assert torch.equal(tile(layer(select(x))), torch.cat(want * (tau * tau * groups), 1))


def test_group_by_group_each_group_is_an_expanded_layer_of_its_own() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        BinaryConv2d(8, 16, 3, groups=2),
        nn.BatchNorm2d(16),
        conv(16, 4),
    )
    model.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    expand_(model, ESConfig(2, 2))
    select, layer, _ = model[2]
    x = torch.randn(2, 32, 5, 4)
    copies = x.unflatten(1, (4, 8))
    assert layer.groups == 4 and layer.weight.shape == (8, 8, 3, 3)
    want = torch.cat([copies[:, :, :4].flatten(1, 2), copies[:, :, 4:].flatten(1, 2)], 1)
    assert torch.equal(select(x), want)  # all copies of the first group, then of the second


@pytest.mark.parametrize("wide", [2, 6])
def test_layouts_follow_the_values(wide: int) -> None:
    """Against the operations on tensors: a channel's copy k has the value of the channel and k thousands."""
    ones = Layout.whole_copies(("batch", "channels", "space", "space"), 24, wide)
    others = Layout.of_order(ones.roles, runs((4, 12), wide), 16)

    def values(layout: Layout) -> Tensor:
        return (layout.order % layout.channels + 1000 * (layout.order // layout.channels)).view(1, -1, 1, 1)

    both = joined([ones, others])
    assert torch.equal(values(both), torch.cat([values(ones), values(others) + 24], 1))
    mixed = shuffled(ones, 3)
    assert mixed is not None
    nominal = F.channel_shuffle(torch.arange(24.0).view(1, -1, 1, 1), 3).long().flatten()
    moved = F.channel_shuffle(values(ones).float(), 3).long().flatten()
    assert torch.equal(nominal[mixed.order % 24] + 1000 * (mixed.order // 24), moved)
    assert shuffled(ones, 5) is None
    finer = unshuffled(others, 2)
    back = pixel_shuffled(finer, 2)
    assert back is not None and torch.equal(back.order, others.order)
    assert pixel_shuffled(mixed, 2) is None  # the four channels of a pixel are apart
    part = both.taken(1, slice(24, 40), slice(24 * wide, 40 * wide))
    assert part is not None and torch.equal(part.order, others.order)
    assert both.taken(1, slice(0, 12), slice(0, 12 * wide)) is None  # half of the copies of all 24
    assert joined([ones, ones]).taken(1, slice(0, 24), slice(0, 24)) is None  # copy 0 alone


def test_what_is_inserted_where() -> None:
    model = expand_(network("Shuffles")[0], ESConfig(2, 2))
    block = model.blocks[0]
    assert [type(m) for m in block] == [SelectChannels, Shuffle]  # whole copies of either half, for the chunk
    assert [type(m) for m in expand_(network("TwoReaders")[0]).before[2]] == [nn.PReLU, SelectChannels]
    literal = expand_(network("Literals")[0])
    assert [type(m) for m in literal.cut] == [Literal, Tile]
    assert [type(m) for m in literal.cut[0].inside[2]] == [nn.PReLU, SliceChannels]


def test_a_bigger_expansion_names_the_width_that_does_not_fit() -> None:
    with pytest.raises(InputError, match=r"has width 58, which tau=4 times groups=1 does not divide"):
        expand_(binarize_(torchvision.models.shufflenet_v2_x1_0(num_classes=5)), ESConfig(4))
