"""What every expanded network shares: the rule it is expanded by, its real stem and its read-out."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from esbnn_core.channels import check_factors
from esbnn_core.layers import SliceChannels, Tile


@dataclass(frozen=True)
class Expansion:
    """How a trunk is expanded; tau = groups = 1 is the plain network.

    rule "es" (spec 1.5, 1.9) slices the first C channels for the read-out, "rep" (RepBNN, spec 2.2) reads all of them.
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
