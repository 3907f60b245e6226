"""expand_ through operations that move channels: concatenations, splits, shuffles, slices, tokens, gates, groups.

The networks are judged as in test_expand.py: with tau = 1 and g = 2 they compute the plain network, which takes every
copy of every channel in its place; and costs, gradients and packed outputs hold for other factors.
"""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams
from torchvision.models.segmentation import lraspp

from esbnn_core import InputError
from esbnn_core.layers import BinaryConv2d, SelectChannels, SliceChannels, Tile
from esbnn_core.layers.base import binary_layers
from esbnn_core.transforms.binarize import binarize_
from esbnn_core.transforms.expand import ESConfig, expand_, plan_expansion
from esbnn_core.transforms.expand_layout import Layout, joined, pixel_shuffled, runs, shuffled, unshuffled
from tests.helpers.expansion import (
    assert_costs_stay_it_trains_and_packs,
    assert_two_groups_compute_plain,
    stirred,
)
from tests.helpers.layout_networks import NETS, Literal, Shuffle, conv

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
        left = {"Around": {"middle.inside.0"}, "Twice": {"first.0", "twice.0", "last.0.0"}}.get(name, set())
        names = {name.removesuffix(".conv") for name, _ in binary_layers(model)}
        assert len(names) > 1 and names - set(plan.expanded) == left == set(plan.left) & names, (name, plan.left)
    reason = plan_expansion(network("Around")[0]).left["middle.inside.0"]
    assert reason.startswith("it is in middle, whose forward cannot be traced by torch.fx (")


def hrnet() -> nn.Module:
    """hrnet_w18_small with one block where it has two, of fewer channels."""
    shape = copy.deepcopy(timm.models.hrnet.cfg_cls["hrnet_w18_small"])
    for stage in range(2, 5):
        shape[f"stage{stage}"]["num_blocks"] = (1,) * stage
        shape[f"stage{stage}"]["num_channels"] = tuple(8 * 2**branch for branch in range(stage))
    return timm.models.hrnet.HighResolutionNet(shape, num_classes=5)


def googlenet() -> nn.Module:
    """GoogLeNet without three blocks of the nine, of which there is another."""
    model = torchvision.models.googlenet(num_classes=5, aux_logits=False, init_weights=False)
    for name in ("inception4b", "inception4c", "inception5a"):
        setattr(model, name, nn.Identity())
    return model


def segmentation() -> nn.Module:
    """LR-ASPP on a MobileNetV3 with a block of each kind."""
    # channels, kernel, hidden and output channels, squeeze and excite, activation, stride, dilation of each block
    blocks = [
        (16, 3, 16, 16, False, "RE", 1, 1),
        (16, 3, 64, 24, False, "RE", 2, 1),
        (24, 5, 72, 40, True, "RE", 2, 1),
        (40, 3, 80, 40, False, "HS", 1, 1),
        (40, 5, 120, 48, True, "HS", 2, 2),
        (48, 5, 144, 48, True, "HS", 1, 2),
    ]
    backbone = MobileNetV3([InvertedResidualConfig(*block, 1.0) for block in blocks], 64)
    return Out(lraspp._lraspp_mobilenetv3(backbone, 21))


# kernel, hidden and output channels, squeeze and excite, stride of each block
GHOST = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0, 2]], [[5, 72, 40, 0.25, 2]], [[5, 120, 40, 0.25, 1]]]
MOBILE = [
    MBConvConfig(1, 3, 1, 16, 8, 1, 1.0, 1.0),
    MBConvConfig(6, 3, 2, 8, 16, 2, 1.0, 1.0),
    MBConvConfig(6, 5, 2, 16, 24, 1, 1.0, 1.0),
]
SMALL: dict[str, Callable[[], nn.Module]] = {
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 3), 16, 2, num_classes=5),
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 32], num_classes=5),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=5),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=5),
    "efficientnet": lambda: torchvision.models.EfficientNet(MOBILE, 0.0, stochastic_depth_prob=0.0, num_classes=5),
    "regnet": lambda: torchvision.models.RegNet(
        BlockParams.from_init_params(6, 24, 36.0, 2.5, 8, se_ratio=0.25), num_classes=5
    ),
    "googlenet": googlenet,
    "segmentation": segmentation,
    "timm/convnextv2": lambda: timm.create_model("convnextv2_atto", num_classes=5, depths=(1, 1, 1, 1)),
    "timm/ghostnet": lambda: timm.models.ghostnet.GhostNet(GHOST, num_classes=5, drop_rate=0.0),
    "timm/hrnet": hrnet,
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
    plain, x = stirred(binarize_(SMALL[name]())), torch.randn(2, 3, 32, 32)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plan = plan_expansion(plain)
    share = sum(layer.weight.numel() for each, layer in binary_layers(plain) if each in plan.expanded)
    assert share >= 0.9 * sum(layer.weight.numel() for _, layer in binary_layers(plain)), plan.left
    assert_two_groups_compute_plain(plain, x)
    assert_costs_stay_it_trains_and_packs(plain.float(), x, ESConfig(), plan)


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
        expand_(binarize_(torchvision.models.ShuffleNetV2([1, 1, 1], [24, 116, 232, 464, 64])), ESConfig(4))
