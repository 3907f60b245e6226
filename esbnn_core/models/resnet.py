"""Binary ResNets of one-convolution units: Bi-Real, ReActNet and ReCU, plain, ES and Rep.

papers.md#bireal, #reactnet-r18, #recu

Every binary 3x3 convolution has a shortcut of its own, so a stage is a row of BinaryUnits: 4 a stage for 18 layers, 6 a
stage for the CIFAR ResNet-20. `es_*` tile before the stem's BN and slice for the read-out (papers.md#es-elsewhere),
`rep_*` tile after the stem's BN and read all channels (papers.md#repbnn).
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_at_least, check_counts
from esbnn_core.layers import PadShortcut, RPReLU
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.parts import Stem, keep_layout, make_readout, real_shortcut, resnet_stem
from esbnn_core.models.registry import register_family
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.style import UnitStyle

Downsample = Literal["avgpool_conv", "conv", "pad"]
"""Shortcut of a unit of stride 2: AvgPool2 + real 1x1, strided real 1x1, or AvgPool2 + zero channels."""


@dataclass(frozen=True)
class Layout:
    """Depth and widths of a ResNet.

    Attributes:
        units: of each stage.
        widths: nominal, of each stage.
        stem: "imagenet" (7x7 of stride 2 and a max-pool) or "cifar" (3x3).
    """

    units: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Stem


@dataclass(frozen=True)
class ResNetStyle:
    """What makes the families differ.

    Attributes:
        unit: style of the binary units.
        downsample: shortcut of a unit of stride 2.
        stem_act: activation of the stem.
        head_norm: a BatchNorm in front of the classifier.
        norm_start: start of the weight of every BatchNorm2d.
        rep_tiles_before_norm: whether the rep_ stem tiles before its BN (ReCU, papers.md#rep-recu) or after it
            (ReActNet-A's code, papers.md#repbnn).
    """

    unit: UnitStyle
    downsample: Downsample = "avgpool_conv"
    stem_act: Literal["none", "hardtanh"] = "none"
    head_norm: bool = False
    norm_start: float = 1.0
    rep_tiles_before_norm: bool = False


def _make_shortcut(kind: Downsample, c_in: int, c_out: int, expansion: Expansion, name: str) -> nn.Module:
    if kind == "pad":
        return PadShortcut(expansion.wide)
    return real_shortcut(c_in, c_out, expansion, name, pooled=kind == "avgpool_conv")


def _further_acts(count: int, channels: int) -> nn.Sequential:
    """RPReLUs in a row that start as the identity, with their kinks apart: evenly spaced normal quantiles."""
    acts = [RPReLU(channels) for _ in range(count)]
    for number, act in enumerate(acts):
        kink = NormalDist().inv_cdf((number + 0.5) / count)
        nn.init.constant_(act.slope, 1.0)
        nn.init.constant_(act.shift_in, -kink)
        nn.init.constant_(act.shift_out, kink)
    return nn.Sequential(*acts)


def binary_stages(
    layout: Layout,
    style: UnitStyle,
    expansion: Expansion,
    downsample: Downsample = "avgpool_conv",
    further_acts: int = 0,
) -> nn.Sequential:
    """Stages layer1, layer2, ...: each a row of BinaryUnits with a shortcut each.

    (N, tau*g*widths[0], H, W) -> (N, tau*g*widths[-1], H', W'). The first unit of a stage has stride 2, but in layer1.

    Args:
        layout: units and widths.
        style: of the units.
        expansion: plain or expanded.
        downsample: shortcut of the units of stride 2.
        further_acts: RPReLUs behind each unit, as BinaryResNet has them.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer (stages.layer2.0).
    """
    before = layout.widths[0]
    stages = OrderedDict[str, nn.Module]()
    for number, (count, width) in enumerate(zip(layout.units, layout.widths, strict=True), start=1):
        stage: list[nn.Module] = []
        for index in range(count):
            name = f"stages.layer{number}.{index}"
            stride = 2 if index == 0 and number > 1 else 1
            shortcut: nn.Module = nn.Identity()
            if stride > 1:
                shortcut = _make_shortcut(downsample, before, width, expansion, f"{name}.shortcut")
            stage.append(
                BinaryUnit(before, width, stride=stride, style=style, expansion=expansion, shortcut=shortcut, name=name)
            )
            if further_acts:
                stage.append(_further_acts(further_acts, expansion.wide * width))
            before = width
        stages[f"layer{number}"] = nn.Sequential(*stage)
    return nn.Sequential(stages)


class BinaryResNet(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    Args:
        layout: depth, widths and stem.
        style: of the family.
        expansion: plain, ES or Rep.
        num_classes: of the classifier.
        in_channels: of the stem.
        further_acts: so many RPReLUs more behind each unit, which start as the identity: three real parameters each for
            a channel, no operation that the papers count. It gives a plain network as many real parameters as an
            expanded one has.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(
        self,
        layout: Layout,
        style: ResNetStyle,
        expansion: Expansion,
        num_classes: int = 1000,
        in_channels: int = 3,
        further_acts: int = 0,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        check_at_least(0, further_acts=further_acts)
        tile_first = expansion.rule == "es" or style.rep_tiles_before_norm
        act = nn.Hardtanh() if style.stem_act == "hardtanh" else None
        self.stem = resnet_stem(layout.stem, in_channels, layout.widths[0], expansion, tile_first, act)
        self.stages = binary_stages(layout, style.unit, expansion, style.downsample, further_acts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.readout, features = make_readout(layout.widths[-1], expansion)
        self.head_norm: nn.Module = nn.BatchNorm1d(features) if style.head_norm else nn.Identity()
        self.fc = nn.Linear(features, num_classes)
        if style.norm_start != 1:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.constant_(module.weight, style.norm_start)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))

    def head(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the last stage's output (N, tau*g*C, H, W)."""
        x = self.readout(torch.flatten(self.pool(keep_layout(x)), 1))
        logits: Tensor = self.fc(self.head_norm(x))
        return logits


BIREAL = ResNetStyle(UnitStyle(shift=False, act="none"))
REACTNET = ResNetStyle(UnitStyle())
RECU = ResNetStyle(
    UnitStyle(
        shift=False,
        ste="poly2_unit_variance",
        weight_quantizer="recu",
        learned_scale=True,
        latent_init="kaiming",
        act="hardtanh",
    ),
    downsample="pad",
    stem_act="hardtanh",
    head_norm=True,
    rep_tiles_before_norm=True,
)
# no shortcut is known for ReCU's CIFAR ResNet-18: this is the one of its ImageNet ResNet-18
RECU_18 = replace(RECU, downsample="conv")
# The start of 1e-8 is that of the ImageNet code; the CIFAR ResNet-20 starts at 1. The original's stem has the hardtanh
# after the max-pool, here it comes first: the numbers are the same in either order.
RECU_IMAGENET = replace(RECU_18, norm_start=1e-8)

R8 = Layout((2, 2, 2), (16, 32, 64), "cifar")
R8X2 = Layout((2, 2, 2), (32, 64, 128), "cifar")
R8X4 = Layout((2, 2, 2), (64, 128, 256), "cifar")
R20 = Layout((6, 6, 6), (16, 32, 64), "cifar")
R18 = Layout((4, 4, 4, 4), (64, 128, 256, 512), "imagenet")
R34 = Layout((6, 8, 12, 6), (64, 128, 256, 512), "imagenet")


def _recu_resnet18(
    expansion: Expansion, num_classes: int = 10, in_channels: int = 3, stem: Stem = "cifar"
) -> nn.Module:
    style = RECU_IMAGENET if stem == "imagenet" else RECU_18
    return BinaryResNet(replace(R18, stem=stem), style, expansion, num_classes, in_channels)


register_family("bireal_resnet18", partial(BinaryResNet, R18, BIREAL), 224)
register_family("bireal_resnet34", partial(BinaryResNet, R34, BIREAL), 224)
register_family("reactnet_resnet18", partial(BinaryResNet, R18, REACTNET), 224)
register_family("reactnet_resnet34", partial(BinaryResNet, R34, REACTNET), 224)
register_family("reactnet_resnet20", partial(BinaryResNet, R20, REACTNET, num_classes=10), 32)
register_family("reactnet_resnet8", partial(BinaryResNet, R8, REACTNET, num_classes=10), 32)
register_family("reactnet_resnet8x2", partial(BinaryResNet, R8X2, REACTNET, num_classes=10), 32)
register_family("reactnet_resnet8x4", partial(BinaryResNet, R8X4, REACTNET, num_classes=10), 32)
register_family("recu_resnet20", partial(BinaryResNet, R20, RECU, num_classes=10), 32)
register_family("recu_resnet34", partial(BinaryResNet, R34, RECU_IMAGENET), 224)
register_family("recu_resnet18", _recu_resnet18, 32)
