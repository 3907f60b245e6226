"""TimestepUnit: shift by group -> sign -> conv -> tile -> RPReLU by group (+ input), the brick of BI-DiffSR."""

from typing import Literal, get_args

from torch import Tensor, nn

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import BinaryConv2d, Sign, Tile, TimestepRPReLU, TimestepShift
from esbnn_core.layers.base import LatentInit
from esbnn_core.layers.quantizers import STE, QuantizerChoice
from esbnn_core.layers.widths import PLAIN, Expansion, es_widths

TimestepAct = Literal["rprelu", "none"]
TimestepResidual = Literal["after_act", "before_act", "none"]


class TimestepUnit(nn.Module):
    """One binary convolution C -> C with its timestep-aware parts, plain or expanded: BI-DiffSR's BI-Conv.

        y = tile(conv(sign(x + shift_g)));  y = prelu_g(y + shift_in_g);  y = y + x;  y = y + shift_out_g

    (N, tau*g*C, H, W) -> the same shape, with zeros around the signs. There is no norm: the network has one in front of
    the unit. The input is the residual, so the output has as many channels. Outside training the sum stays an exact
    whole number, and everything after it is added in the packed operator's order (papers.md#timestep-units).

    Args:
        channels: nominal C.
        kernel_size: odd.
        timestep_groups: K, 1 for parts that do not depend on the timestep.
        expansion: C/tau filters over tau*g*C channels, tiled tau^2*g times; its copy_spread needs a shift.
        ste: estimator of the sign.
        clip: half width of the "clip" estimator.
        weight_quantizer: as BinaryConv2d.
        latent_init: as BinaryConv2d.
        shift: TimestepShift in front of the sign, or the bare sign.
        act: TimestepRPReLU or none.
        residual: "after_act" adds x as above, "before_act" in front of the RPReLU (ReActNet), "none" nowhere.
        name: the unit's name, for errors alone.

    Raises:
        InputError: tau*groups does not divide channels; an even kernel; an unknown act or residual; a copy_spread
            without shift.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        timestep_groups: int = 5,
        expansion: Expansion = PLAIN,
        ste: STE = "poly2",
        clip: float = 1.0,
        weight_quantizer: QuantizerChoice = "absmean",
        latent_init: LatentInit = "uniform",
        shift: bool = True,
        act: TimestepAct = "rprelu",
        residual: TimestepResidual = "after_act",
        name: str = "",
    ) -> None:
        super().__init__()
        unit = f"unit {name or '(unnamed)'}"
        check_choice(f"act of {unit}", act, get_args(TimestepAct))
        check_choice(f"residual of {unit}", residual, get_args(TimestepResidual))
        if kernel_size % 2 == 0:
            raise InputError(
                f"kernel_size of {unit} must be odd, got {kernel_size}: an even kernel changes the size of the map, "
                f"and the input could not be added"
            )
        widths = es_widths(channels, channels, expansion, layer=name)
        spread = expansion.copy_spread
        if spread and not shift:
            raise InputError(f"copy_spread of {unit} must be 0, got {spread}: its sign has no shift to spread")
        self.tau, self.groups, self.residual = expansion.tau, expansion.groups, residual
        self.timestep_groups = timestep_groups
        self.shift = TimestepShift(widths.carried_in, timestep_groups, widths.copies, spread) if shift else None
        self.conv = BinaryConv2d(
            widths.carried_in,
            widths.filters,
            kernel_size,
            padding=kernel_size // 2,
            groups=widths.groups,
            weight_quantizer=weight_quantizer,
            activation=Sign(ste, clip),
            latent_init=latent_init,
        )
        self.tile: nn.Module = Tile(widths.copies) if widths.copies > 1 else nn.Identity()
        self.act = TimestepRPReLU(widths.carried_out, timestep_groups) if act == "rprelu" else None

    @property
    def copies(self) -> int:
        """tau^2*g."""
        return self.tile.copies if isinstance(self.tile, Tile) else 1

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """x (N, tau*g*C, H, W); group int64, the timestep group of each sample (N,) or of the whole batch (1,)."""
        y: Tensor = self.tile(self.conv(x if self.shift is None else self.shift(x, group)))
        if self.residual == "before_act":
            y = y + x
        after = x if self.residual == "after_act" else None
        if self.act is not None:
            y = self.act(y, group, after)
        elif after is not None:
            y = y + after
        return y
