"""The arithmetic of expanding and shrinking: widths for (tau, groups), the tile, and where the copies start.

Figure 2 of the paper in one file (arXiv 2503.23709; papers.md#es, #equal-cost). A layer of nominal widths c_in -> c_out
becomes

    carried input  tau*g*c_in  ->  binary conv, c_out/tau filters in g groups  ->  tile tau^2*g  ->  tau*g*c_out

so that multiply-accumulates and weights stay c_in*c_out*k^2 for every tau and g, while one output entry sums tau
times as many terms. tau = 1, g = 1 is the plain layer (Figure 2a), g = 1 is ES (2b), g > 1 adds group convolution (2c).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from esbnn_core.errors import InputError, check_factors


@dataclass(frozen=True)
class ESWidths:
    """Channel counts of one layer under (tau, groups); all but `copies` and `groups` are channel counts."""

    carried_in: int
    """tau*g*c_in, what the layer receives."""
    filters: int
    """c_out/tau, the distinct maps that the convolution computes."""
    carried_out: int
    """tau*g*c_out, what the layer hands on."""
    copies: int
    """tau^2*g, how often the maps are tiled."""
    groups: int


def es_widths(in_channels: int, out_channels: int, tau: int = 1, groups: int = 1, *, layer: str = "") -> ESWidths:
    """Widths of the layer that stands in for `in_channels -> out_channels` (nominal) under (tau, groups).

    Args:
        in_channels, out_channels: nominal widths, as the plain network has them.
        tau: expansion factor. groups: groups of the convolution.
        layer: the layer's name, for the error alone.

    Raises:
        InputError: tau*groups does not divide out_channels.
    """
    check_factors(tau, groups)
    if out_channels % (tau * groups):
        raise InputError(
            f"layer {layer or '(unnamed)'} has width {out_channels}, which tau={tau} times groups={groups} does not "
            f"divide: choose tau and groups so that tau*groups divides every width of the network"
        )
    return ESWidths(
        carried_in=tau * groups * in_channels,
        filters=out_channels // tau,
        carried_out=tau * groups * out_channels,
        copies=tau * tau * groups,
        groups=groups,
    )


def tile(x: Tensor, copies: int, dim: int = 1) -> Tensor:
    """`copies` whole copies one after the other along `dim`: out[j] = x[j mod C], never repeat_interleave.

    Source: papers.md#tile-order.

    Keeps dtype, device and memory format; `copies` = 1 returns x itself.
    """
    return x if copies == 1 else torch.cat([x] * copies, dim=dim)


def thermometer_shift(channels: int, copies: int, spread: float) -> Tensor:
    """Start values (channels,) of an RSign shift whose copies form a thermometer code of the same map.

    Differs from the paper: there the copies start identical (papers.md#es-quirk-12). With a spread s the threshold of
    copy j of n is s times the normal quantile of (j + 0.5)/n; a threshold t is a shift of -t. spread = 0 gives zeros.

    Raises:
        InputError: `copies` does not divide `channels`.
    """
    if channels % copies:
        raise InputError(f"{copies} copies were given, a divisor of the {channels} channels was expected")
    positions = (torch.arange(copies, dtype=torch.float64) + 0.5) / copies
    thresholds = spread * torch.special.ndtri(positions)
    shift: Tensor = (-thresholds).repeat_interleave(channels // copies).to(torch.get_default_dtype())
    return shift
