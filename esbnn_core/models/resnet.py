"""Binary ResNets of single-convolution units: Bi-Real, ReActNet and ReCU (papers.md#recu), with ES and Rep.

Source: papers.md#reactnet-r18, #bireal.

Every binary 3x3 convolution has a shortcut of its own, so a stage is a flat row of BinaryUnits: 4 a stage for 18
layers, 6 a stage for the CIFAR ResNet-20. `es_*` follow papers.md#es-elsewhere (tile before the stem's BN, sliced
read-out), `rep_*` papers.md#repbnn (tile after the stem's BN, read-out over all channels).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.layers import PadShortcut
from esbnn_core.layers.base import LatentInit
from esbnn_core.layers.quantizers import STE
from esbnn_core.models.parts import Expansion, Stem, real_shortcut, resnet_stem
from esbnn_core.models.registry import register_model
from esbnn_core.units.conv import Act, BinaryUnit


@dataclass(frozen=True)
class Layout:
    """Depth and widths: units per stage, nominal width per stage, stem ("imagenet": 7x7 s2 + pool, "cifar": 3x3)."""

    units: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Stem


@dataclass(frozen=True)
class Style:
    """What tells the families apart."""

    shift: bool
    act: Act
    ste: STE = "poly2"
    weight_quantizer: str = "absmean"
    learned_scale: bool = False
    latent_init: LatentInit = "uniform"
    downsample: Literal["avgpool_conv", "conv", "pad"] = "avgpool_conv"
    """Shortcut where width and stride change: AvgPool2 + real 1x1, strided real 1x1, or AvgPool2 + zero channels."""
    stem_act: Act = "none"
    head_norm: bool = False
    pad_value: int = 0
    """Of the binary convolutions' border, after the sign."""
    norm_start: float = 1.0
    """Start of the weight of every BatchNorm2d."""
    rep_tiles_before_norm: bool = False
    """Where the rep_ stem tiles: after its BN (ReActNet-A's code, papers.md#repbnn) or before it (ReCU,
    papers.md#rep-recu)."""

    def unit(
        self,
        before: int,
        width: int,
        expansion: Expansion,
        name: str,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        bias: bool = False,
        shortcut: nn.Module | None,
        rectified: bool = False,
    ) -> BinaryUnit:
        """A binary unit of this style, nominal before -> width; its default padding keeps the size but for stride."""
        return BinaryUnit(
            before,
            width,
            kernel_size,
            stride,
            dilation * (kernel_size // 2) if padding is None else padding,
            dilation=dilation,
            pad_value=self.pad_value,
            tau=expansion.tau,
            groups=expansion.groups,
            copy_spread=expansion.copy_spread,
            shift=self.shift,
            ste=self.ste,
            weight_quantizer=self.weight_quantizer,
            learned_scale=self.learned_scale,
            latent_init=self.latent_init,
            bias=bias,
            act=self.act,
            shortcut=shortcut,
            rectified=rectified,
            name=name,
        )


def _shortcut(kind: str, c_in: int, c_out: int, e: Expansion, name: str) -> nn.Module:
    return PadShortcut(e.wide) if kind == "pad" else real_shortcut(c_in, c_out, e, name, kind == "avgpool_conv")


def binary_stages(layout: Layout, style: Style, expansion: Expansion) -> nn.Sequential:
    """Entries layer1, layer2, ...: each a row of BinaryUnits with a shortcut of its own, the first of stride 2 but in
    layer1. (N, wide*widths[0], H, W) -> (N, wide*widths[-1], H', W') with wide = tau*groups.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer (stages.layer2.0).
    """
    before = layout.widths[0]
    stages = OrderedDict[str, nn.Module]()
    for number, (count, width) in enumerate(zip(layout.units, layout.widths, strict=True), start=1):
        stage = []
        for index in range(count):
            name = f"stages.layer{number}.{index}"
            stride = 2 if index == 0 and number > 1 else 1
            shortcut: nn.Module = nn.Identity()
            if stride > 1:
                shortcut = _shortcut(style.downsample, before, width, expansion, f"{name}.shortcut")
            stage.append(style.unit(before, width, expansion, name, stride=stride, shortcut=shortcut))
            before = width
        stages[f"layer{number}"] = nn.Sequential(*stage)
    return nn.Sequential(stages)


class BinaryResNet(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    Args:
        layout, style, expansion: see their classes. num_classes, in_channels: of the read-out and the stem.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(self, layout: Layout, style: Style, expansion: Expansion, num_classes: int, in_channels: int) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        tile_first = expansion.rule == "es" or style.rep_tiles_before_norm
        act = nn.Hardtanh() if style.stem_act == "hardtanh" else None
        self.stem = resnet_stem(layout.stem, in_channels, layout.widths[0], expansion, tile_first, act)
        self.stages = binary_stages(layout, style, expansion)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.readout, readout = expansion.read_out(layout.widths[-1])
        self.head_norm: nn.Module = nn.BatchNorm1d(readout) if style.head_norm else nn.Identity()
        self.fc = nn.Linear(readout, num_classes)
        if style.norm_start != 1:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.constant_(module.weight, style.norm_start)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))

    def head(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of the last stage's output (N, tau*g*C, H, W)."""
        x = self.readout(torch.flatten(self.pool(x), 1))
        logits: Tensor = self.fc(self.head_norm(x))
        return logits


BIREAL = Style(shift=False, act="none")
REACTNET = Style(shift=True, act="rprelu")
RECU = Style(
    shift=False,
    act="hardtanh",
    ste="tent",
    weight_quantizer="recu",
    learned_scale=True,
    latent_init="kaiming",
    downsample="pad",
    stem_act="hardtanh",
    head_norm=True,
    rep_tiles_before_norm=True,
)
# the spec gives no shortcut for the CIFAR ResNet-18 of ReCU: ours is that of its ImageNet ResNet-18
RECU_18 = replace(RECU, downsample="conv")
# The start of 1e-8 is the ImageNet code's, the CIFAR ResNet-20 starts at 1 as always. In the stem a max-pool and a
# hardtanh give the same in either order; here the hardtanh comes first.
RECU_IMAGENET = replace(RECU_18, norm_start=1e-8)

R8 = Layout((2, 2, 2), (16, 32, 64), "cifar")
R8X2 = Layout((2, 2, 2), (32, 64, 128), "cifar")
R20 = Layout((6, 6, 6), (16, 32, 64), "cifar")
R18 = Layout((4, 4, 4, 4), (64, 128, 256, 512), "imagenet")
R34 = Layout((6, 8, 12, 6), (64, 128, 256, 512), "imagenet")

Net = Callable[[Expansion, int, int], nn.Module]
"""(expansion, num_classes, in_channels) -> network."""


def family(name: str, net: Net, classes: int, size: int, rep: bool = True) -> None:
    """Register `name`, `es_name` and, unless told otherwise, `rep_name`."""

    def base(num_classes: int = classes, in_channels: int = 3) -> nn.Module:
        return net(Expansion(), num_classes, in_channels)

    def es(
        num_classes: int = classes, in_channels: int = 3, tau: int = 2, groups: int = 1, copy_spread: float = 0.0
    ) -> nn.Module:
        return net(Expansion(tau, groups, copy_spread), num_classes, in_channels)

    def replicated(num_classes: int = classes, in_channels: int = 3, tau: int = 2) -> nn.Module:
        return net(Expansion(tau, rule="rep"), num_classes, in_channels)

    register_model(name, base, size)
    register_model(f"es_{name}", es, size)
    if rep:
        register_model(f"rep_{name}", replicated, size)


def _recu_18(expansion: Expansion, num_classes: int, in_channels: int, stem: Stem) -> nn.Module:
    style = RECU_IMAGENET if stem == "imagenet" else RECU_18
    return BinaryResNet(replace(R18, stem=stem), style, expansion, num_classes, in_channels)


def _recu_18_base(num_classes: int = 10, in_channels: int = 3, stem: Stem = "cifar") -> nn.Module:
    return _recu_18(Expansion(), num_classes, in_channels, stem)


def _recu_18_es(
    num_classes: int = 10,
    in_channels: int = 3,
    tau: int = 2,
    groups: int = 1,
    copy_spread: float = 0.0,
    stem: Stem = "cifar",
) -> nn.Module:
    return _recu_18(Expansion(tau, groups, copy_spread), num_classes, in_channels, stem)


def _recu_18_rep(num_classes: int = 10, in_channels: int = 3, tau: int = 2, stem: Stem = "cifar") -> nn.Module:
    return _recu_18(Expansion(tau, rule="rep"), num_classes, in_channels, stem)


family("bireal_resnet18", partial(BinaryResNet, R18, BIREAL), classes=1000, size=224)
family("bireal_resnet34", partial(BinaryResNet, R34, BIREAL), classes=1000, size=224)
family("reactnet_resnet18", partial(BinaryResNet, R18, REACTNET), classes=1000, size=224)
family("reactnet_resnet34", partial(BinaryResNet, R34, REACTNET), classes=1000, size=224)
family("reactnet_resnet20", partial(BinaryResNet, R20, REACTNET), classes=10, size=32)
family("reactnet_resnet8", partial(BinaryResNet, R8, REACTNET), classes=10, size=32)
family("reactnet_resnet8x2", partial(BinaryResNet, R8X2, REACTNET), classes=10, size=32)
family("recu_resnet20", partial(BinaryResNet, R20, RECU), classes=10, size=32)
family("recu_resnet34", partial(BinaryResNet, R34, RECU_IMAGENET), classes=1000, size=224)
register_model("recu_resnet18", _recu_18_base, 32)
register_model("es_recu_resnet18", _recu_18_es, 32)
register_model("rep_recu_resnet18", _recu_18_rep, 32)
