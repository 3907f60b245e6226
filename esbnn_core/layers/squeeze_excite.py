"""Squeeze-excite of BNext, whose two real 1x1 convolutions expand and shrink too (papers.md#es-bnext, #bnext)."""

from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers.tile import Tile
from esbnn_core.layers.widths import PLAIN, Expansion


class SqueezeExcite(nn.Module):
    """sigmoid(conv(ReLU(conv(GAP(x))))) as a gate: (N, tau*g*C, H, W) -> (N, tau*g*C, 1, 1).

    Plain (tau = groups = 1): C -> C//reduction -> C. Expanded: tau*g*C -> int((C//reduction)/tau), tile tau^2*g, then
    tau*g*(C//reduction) -> C/tau, tile tau^2*g, both in g groups, with the multiply-accumulates of the plain one.
    Under the rule "rep" the hidden width stays C//reduction and nothing is tiled, at tau*g times the cost.
    The positions in `se` are those of the original files: convolutions at 1 and 4 when tiled, at 1 and 3 when plain.

    Args:
        channels: nominal C.
        reduction: C over the hidden width.
        expansion: tau, groups and the rule.
        name: the gate's name, for errors alone.

    Raises:
        InputError: tau*groups does not divide C or the hidden width C//reduction (rule "es").
    """

    def __init__(self, channels: int, reduction: int = 8, expansion: Expansion = PLAIN, name: str = "") -> None:
        super().__init__()
        e, hidden = expansion, channels // reduction
        wide_channels = e.wide * channels
        if e.rule == "rep":
            self.se = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(wide_channels, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, wide_channels, 1),
                nn.Sigmoid(),
            )
            return
        for width in (hidden, channels):
            if width == 0 or width % e.wide:
                raise InputError(
                    f"squeeze-excite {name or '(unnamed)'} has width {width}, which tau={e.tau} times "
                    f"groups={e.groups} does not divide: choose tau and groups so that tau*groups divides it"
                )
        tiled = e.copies > 1
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide_channels, hidden // e.tau, 1, groups=e.groups),
            *([Tile(e.copies)] if tiled else []),
            nn.ReLU(),
            nn.Conv2d(e.wide * hidden, channels // e.tau, 1, groups=e.groups),
            *([Tile(e.copies)] if tiled else []),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The gate (N, tau*g*C, 1, 1); the caller multiplies by it."""
        gate: Tensor = self.se(x)
        return gate
