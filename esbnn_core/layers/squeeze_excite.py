"""Squeeze-excite of BNext with the expand-shrink treatment of its two real 1x1 convolutions.

Source: papers.md#es-bnext, #bnext.
"""

from torch import Tensor, nn

from esbnn_core.errors import InputError, check_factors
from esbnn_core.layers.tile import Tile


class SqueezeExcite(nn.Module):
    """sigmoid(conv(ReLU(conv(GAP(x))))) as a gate: (N, tau*g*C, H, W) -> (N, tau*g*C, 1, 1).

    Plain (tau = groups = 1): C -> C//reduction -> C. Expanded: tau*g*C -> int((C//reduction)/tau), tile tau^2*g, then
    tau*g*(C//reduction) -> C/tau, tile tau^2*g, both in g groups; multiply-accumulates as in the plain one.
    The positions in `se` are those of the original files: convolutions at 1 and 4 when tiled, 1 and 3 when plain.

    Args:
        channels: nominal C. reduction: of the hidden width. tau, groups: expansion factor and groups. name: for errors.
        shrink: False keeps the hidden width and tiles nothing, tau*g times the cost (the earlier Rep variant).

    Raises:
        InputError: tau*groups divides C or the hidden width C//reduction not.
    """

    def __init__(
        self, channels: int, reduction: int = 8, tau: int = 1, groups: int = 1, name: str = "", shrink: bool = True
    ) -> None:
        super().__init__()
        check_factors(tau, groups)
        hidden = channels // reduction
        if not shrink:
            wide = tau * groups
            self.se = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(wide * channels, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, wide * channels, 1),
                nn.Sigmoid(),
            )
            return
        for width in (hidden, channels):
            if width == 0 or width % (tau * groups):
                raise InputError(
                    f"squeeze-excite {name or '(unnamed)'} has width {width}, which tau={tau} times groups={groups} "
                    f"does not divide: choose tau and groups so that tau*groups divides it"
                )
        copies, wide = tau * tau * groups, tau * groups
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide * channels, hidden // tau, 1, groups=groups)]
        if copies > 1:
            layers.append(Tile(copies))
        layers += [nn.ReLU(), nn.Conv2d(wide * hidden, channels // tau, 1, groups=groups)]
        if copies > 1:
            layers.append(Tile(copies))
        layers.append(nn.Sigmoid())
        self.se = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The gate; the caller multiplies by it."""
        gate: Tensor = self.se(x)
        return gate
