"""The arithmetic of expanding and shrinking: how wide a layer gets, the tile, and where the copies start.

Figure 2 of the paper in one file (papers.md#es, #equal-cost). A layer of nominal widths c_in -> c_out becomes

    carried input  tau*g*c_in  ->  binary conv, c_out/tau filters in g groups  ->  tile tau^2*g  ->  tau*g*c_out

Multiply-accumulates and weights stay c_in*c_out*k^2 for every tau and g, while one output entry sums tau times as many
terms. tau = g = 1 is the plain layer (Figure 2a), g = 1 is ES (2b), g > 1 adds group convolution (2c).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from esbnn_core.errors import InputError, check_choice, check_factors

Rule = Literal["es", "rep"]


@dataclass(frozen=True)
class Expansion:
    """How layers and networks are expanded; the default is the plain network.

    Attributes:
        tau: expansion factor.
        groups: groups g of the convolutions.
        copy_spread: of the RSign shifts (thermometer_shift); 0 starts the copies identical, as the paper does.
        rule: "es" shrinks squeeze-excite and reads the first C channels out (papers.md#es-bnext, #es-elsewhere).
            "rep" keeps squeeze-excite wide and reads all channels out (RepBNN, papers.md#repbnn).

    Raises:
        InputError: tau or groups is not a whole number of at least 1; copy_spread is negative or not finite; an unknown
            rule.
    """

    tau: int = 1
    groups: int = 1
    copy_spread: float = 0.0
    rule: Rule = "es"

    def __post_init__(self) -> None:
        check_factors(self.tau, self.groups)
        check_choice("rule", self.rule, get_args(Rule))
        spread = self.copy_spread
        if isinstance(spread, bool) or not isinstance(spread, int | float) or not 0 <= spread < 1e9:
            raise InputError(f"copy_spread must be a finite number of at least 0, got {spread!r}")

    @property
    def wide(self) -> int:
        """tau*g, the carried width over the nominal one."""
        return self.tau * self.groups

    @property
    def copies(self) -> int:
        """tau^2*g, how often a layer's maps are tiled."""
        return self.tau * self.wide


PLAIN = Expansion()


@dataclass(frozen=True)
class ESWidths:
    """Channel counts of one expanded layer.

    Attributes:
        carried_in: tau*g*c_in, what the layer receives.
        filters: c_out/tau, the distinct maps that the convolution computes.
        carried_out: tau*g*c_out, what the layer returns.
        copies: tau^2*g, how often the maps are tiled.
        groups: g.
    """

    carried_in: int
    filters: int
    carried_out: int
    copies: int
    groups: int


def es_widths(in_channels: int, out_channels: int, expansion: Expansion, *, layer: str = "") -> ESWidths:
    """Widths of the layer that replaces the nominal in_channels -> out_channels.

    Args:
        in_channels: nominal input width, as in the plain network.
        out_channels: nominal output width.
        expansion: tau and groups.
        layer: the layer's name, for the error alone.

    Raises:
        InputError: tau*groups does not divide out_channels.
    """
    if out_channels % expansion.wide:
        raise InputError(
            f"layer {layer or '(unnamed)'} has width {out_channels}, which tau={expansion.tau} times "
            f"groups={expansion.groups} does not divide: choose tau and groups so that tau*groups divides every width"
        )
    return ESWidths(
        carried_in=expansion.wide * in_channels,
        filters=out_channels // expansion.tau,
        carried_out=expansion.wide * out_channels,
        copies=expansion.copies,
        groups=expansion.groups,
    )


def tile(x: Tensor, copies: int, dim: int = 1) -> Tensor:
    """Whole copies along `dim`, one after the other: out[j] = x[j mod C], not repeat_interleave (papers.md#tile-order).

    Keeps dtype, device and memory format; `copies` = 1 returns x itself.
    """
    return x if copies == 1 else torch.cat([x] * copies, dim=dim)


def thermometer_shift(channels: int, copies: int, spread: float) -> Tensor:
    """Start values (channels,) of an RSign shift whose copies form a thermometer code of the same map.

    With a spread s the threshold of copy j of n is s times the normal quantile of (j + 0.5)/n. A threshold t is a shift
    of -t. spread = 0 gives zeros.
    Differs from the paper: there the copies start identical (papers.md#es-quirk-12).

    Args:
        channels: of the tiled map, all copies together.
        copies: how many copies the map holds.
        spread: s.

    Raises:
        InputError: `copies` does not divide `channels`.
    """
    if channels % copies:
        raise InputError(f"copies must divide the {channels} channels, got {copies} copies")
    positions = (torch.arange(copies, dtype=torch.float64) + 0.5) / copies
    thresholds = spread * torch.special.ndtri(positions)
    shift: Tensor = (-thresholds).repeat_interleave(channels // copies).to(torch.get_default_dtype())
    return shift
