"""Binary ResNets of single-convolution units: Bi-Real, ReActNet (spec 3.3, 5.1) and ReCU (spec 5.3), with ES and Rep.

Every binary 3x3 convolution has a shortcut of its own, so a stage is a flat row of BinaryUnits: 4 a stage for 18
layers, 6 a stage for the CIFAR ResNet-20. `es_*` follow spec 1.9 (tile before the stem's BN, sliced read-out),
`rep_*` spec 2.2 (tile after the stem's BN, read-out over all channels).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from esbnn_core.channels import check_counts, es_widths
from esbnn_core.layers import PadShortcut, Tile
from esbnn_core.layers.base import LatentInit
from esbnn_core.models.registry import register_model
from esbnn_core.models.trunk import Expansion, halving_pool, real_stem
from esbnn_core.quantizers import STE
from esbnn_core.unit import Act, BinaryUnit


@dataclass(frozen=True)
class Layout:
    """Depth and widths: units per stage, nominal width per stage, stem ("imagenet": 7x7 s2 + pool, "cifar": 3x3)."""

    units: tuple[int, ...]
    widths: tuple[int, ...]
    stem: Literal["imagenet", "cifar"]


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
    rep_tiles_before_norm: bool = False
    """Where the rep_ stem tiles: after its BN (ReActNet-A's code, spec 2.2) or before it (ReCU, spec 2.4)."""


def _downsample(kind: str, c_in: int, c_out: int, e: Expansion, name: str) -> nn.Module:
    if kind == "pad":
        return PadShortcut(e.wide)
    # the real 1x1 gets the treatment of the binary layers, so that its cost stays too (spec 1.9)
    w = es_widths(c_in, c_out, e.tau, e.groups, layer=name)
    layers: list[nn.Module] = []
    stride = 2
    if kind == "avgpool_conv":
        layers.append(halving_pool())
        stride = 1
    layers.append(nn.Conv2d(w.carried_in, w.filters, 1, stride, bias=False, groups=w.groups))
    if w.copies > 1:
        layers.append(Tile(w.copies))
    layers.append(nn.BatchNorm2d(w.carried_out))
    return nn.Sequential(*layers)


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
        first, last = layout.widths[0], layout.widths[-1]
        self.stem = _stem(layout, style, expansion, in_channels)
        before = first
        stages = OrderedDict[str, nn.Module]()
        for number, (count, width) in enumerate(zip(layout.units, layout.widths, strict=True), start=1):
            stage = []
            for index in range(count):
                name = f"stages.layer{number}.{index}"
                stride = 2 if index == 0 and number > 1 else 1
                shortcut: nn.Module = nn.Identity()
                if stride > 1:
                    shortcut = _downsample(style.downsample, before, width, expansion, f"{name}.shortcut")
                stage.append(
                    BinaryUnit(
                        before,
                        width,
                        stride=stride,
                        tau=expansion.tau,
                        groups=expansion.groups,
                        copy_spread=expansion.copy_spread,
                        shift=style.shift,
                        ste=style.ste,
                        weight_quantizer=style.weight_quantizer,
                        learned_scale=style.learned_scale,
                        latent_init=style.latent_init,
                        act=style.act,
                        shortcut=shortcut,
                        name=name,
                    )
                )
                before = width
            stages[f"layer{number}"] = nn.Sequential(*stage)
        self.stages = nn.Sequential(stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.readout, readout = expansion.read_out(last)
        self.head_norm: nn.Module = nn.BatchNorm1d(readout) if style.head_norm else nn.Identity()
        self.fc = nn.Linear(readout, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        x = self.readout(torch.flatten(self.pool(x), 1))
        logits: Tensor = self.fc(self.head_norm(x))
        return logits


def _stem(layout: Layout, style: Style, e: Expansion, in_channels: int) -> nn.Sequential:
    """Real first convolution at nominal cost, tiled tau*g times: before its BN (ES, Rep-ReCU) or after it (Rep)."""
    width = layout.widths[0]
    kernel, stride, padding = (7, 2, 3) if layout.stem == "imagenet" else (3, 1, 1)
    conv = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
    steps = real_stem(conv, e, tile_first=e.rule == "es" or style.rep_tiles_before_norm)
    if style.stem_act == "hardtanh":
        steps["act"] = nn.Hardtanh()
    if layout.stem == "imagenet":
        steps["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(steps)


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
RECU_18 = Style(**{**RECU.__dict__, "downsample": "conv"})

R8 = Layout((2, 2, 2), (16, 32, 64), "cifar")
R20 = Layout((6, 6, 6), (16, 32, 64), "cifar")
R18 = Layout((4, 4, 4, 4), (64, 128, 256, 512), "imagenet")
R34 = Layout((6, 8, 12, 6), (64, 128, 256, 512), "imagenet")
R18_CIFAR = Layout((4, 4, 4, 4), (64, 128, 256, 512), "cifar")


def _family(name: str, layout: Layout, style: Style, classes: int, size: int) -> None:
    """Register `name`, `es_name` and `rep_name`."""

    def base(num_classes: int = classes, in_channels: int = 3) -> nn.Module:
        return BinaryResNet(layout, style, Expansion(), num_classes, in_channels)

    def es(
        num_classes: int = classes, in_channels: int = 3, tau: int = 2, groups: int = 1, copy_spread: float = 0.0
    ) -> nn.Module:
        return BinaryResNet(layout, style, Expansion(tau, groups, copy_spread), num_classes, in_channels)

    def rep(num_classes: int = classes, in_channels: int = 3, tau: int = 2) -> nn.Module:
        return BinaryResNet(layout, style, Expansion(tau, rule="rep"), num_classes, in_channels)

    builders: dict[str, Callable[..., nn.Module]] = {name: base, f"es_{name}": es, f"rep_{name}": rep}
    for full, build in builders.items():
        register_model(full, build, size)


_family("bireal_resnet18", R18, BIREAL, classes=1000, size=224)
_family("bireal_resnet34", R34, BIREAL, classes=1000, size=224)
_family("reactnet_resnet18", R18, REACTNET, classes=1000, size=224)
_family("reactnet_resnet34", R34, REACTNET, classes=1000, size=224)
_family("reactnet_resnet20", R20, REACTNET, classes=10, size=32)
_family("reactnet_resnet8", R8, REACTNET, classes=10, size=32)
_family("recu_resnet20", R20, RECU, classes=10, size=32)
_family("recu_resnet18", R18_CIFAR, RECU_18, classes=10, size=32)
