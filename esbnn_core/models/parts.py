"""What the networks share: the rule they are expanded by, their real stem, real shortcuts and read-out."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from esbnn_core.errors import InputError, check_factors
from esbnn_core.layers import SliceChannels, Tile
from esbnn_core.layers.widths import es_widths

Stem = Literal["imagenet", "cifar"]
"""First layers of a ResNet: 7x7 of stride 2 and a max-pool, or 3x3."""


@dataclass(frozen=True)
class Expansion:
    """How a trunk is expanded; tau = groups = 1 is the plain network.

    rule "es" (papers.md#es-bnext, #es-elsewhere) slices the first C channels for the read-out, "rep" (RepBNN,
    papers.md#repbnn) reads all of them.
    """

    tau: int = 1
    groups: int = 1
    copy_spread: float = 0.0
    rule: Literal["es", "rep"] = "es"

    def __post_init__(self) -> None:
        check_factors(self.tau, self.groups)

    @property
    def wide(self) -> int:
        """tau*g, the carried width over the nominal one."""
        return self.tau * self.groups

    def read_out(self, channels: int) -> tuple[nn.Module, int]:
        """(module in front of the classifier, features that it leaves) for a nominal last width."""
        if self.rule == "es":
            return (SliceChannels(channels) if self.wide > 1 else nn.Identity()), channels
        return nn.Identity(), self.wide * channels


def halving_pool() -> nn.AvgPool2d:
    """2x2 average pooling of a shortcut beside a convolution of stride 2.

    ceil_mode differs from floor on odd sizes only, where it keeps the size of the strided convolution.
    """
    return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)


def real_stem(conv: nn.Conv2d, e: Expansion, tile_first: bool) -> OrderedDict[str, nn.Module]:
    """A real first convolution at nominal cost, tiled tau*g times before its BN (`tile_first`) or after it."""
    steps = OrderedDict[str, nn.Module](conv=conv)
    width = conv.out_channels
    if e.wide > 1 and tile_first:
        steps["tile"] = Tile(e.wide)
        steps["norm"] = nn.BatchNorm2d(e.wide * width)
        return steps
    steps["norm"] = nn.BatchNorm2d(width)
    if e.wide > 1:
        steps["tile"] = Tile(e.wide)
    return steps


def resnet_stem(
    stem: Stem, in_channels: int, width: int, e: Expansion, tile_first: bool, act: nn.Module | None = None
) -> nn.Sequential:
    """Stem of a ResNet: conv, BN and tile (real_stem), then `act`, then the max-pool of "imagenet".

    (N, in_channels, H, W) -> (N, tau*g*width, H/4, W/4), or H x W for "cifar". Raises InputError for another stem.
    """
    if stem not in get_args(Stem):
        raise InputError(f"stem={stem!r} was given, one of {', '.join(get_args(Stem))} was expected")
    kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
    conv = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
    steps = real_stem(conv, e, tile_first)
    if act is not None:
        steps["act"] = act
    if stem == "imagenet":
        steps["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(steps)


def real_shortcut(c_in: int, c_out: int, e: Expansion, name: str, pooled: bool = True) -> nn.Sequential:
    """Shortcut where stride is 2 and the width may change: AvgPool2 + real 1x1 + BN, or a strided real 1x1 + BN.

    The 1x1 gets the treatment of the binary layers, so that its cost stays too (papers.md#es-elsewhere).
    (N, tau*g*c_in, H, W) -> (N, tau*g*c_out, H/2, W/2). Raises InputError naming the layer.
    """
    w = es_widths(c_in, c_out, e.tau, e.groups, layer=name)
    layers: list[nn.Module] = [halving_pool()] if pooled else []
    layers.append(nn.Conv2d(w.carried_in, w.filters, 1, 1 if pooled else 2, bias=False, groups=w.groups))
    if w.copies > 1:
        layers.append(Tile(w.copies))
    layers.append(nn.BatchNorm2d(w.carried_out))
    return nn.Sequential(*layers)
