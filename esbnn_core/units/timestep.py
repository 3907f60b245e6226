"""TimestepUnit: shift by group -> sign -> conv -> tile -> RPReLU by group (+ input), the brick of binary diffusion."""

from typing import Literal, get_args

from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryConv2d, Sign, Tile, TimestepRPReLU, TimestepShift
from esbnn_core.layers.base import LatentInit
from esbnn_core.layers.quantizers import STE, WeightQuantizer
from esbnn_core.layers.widths import es_widths

TimestepAct = Literal["rprelu", "none"]
TimestepResidual = Literal["after_act", "before_act", "none"]


class TimestepUnit(nn.Module):
    """One binary convolution C -> C with its timestep-aware parts, plain or expanded (BI-DiffSR's BI-Conv;
    papers.md#timestep-units).

        y = tile(conv(sign(x + shift_g)));  y = prelu_g(y + shift_in_g);  y = y + x;  y = y + shift_out_g

    (N, tau*g*C, H, W) -> the same shape, with zeros around the signs so that the size stays. There is no norm: one
    stands in front of the unit. The input is the residual, so there are as many channels out as in. Outside training
    the sum stays an exact whole number, and everything behind it is added in the packed operator's order.

    Args:
        channels: nominal C. kernel_size: odd. timestep_groups: K, 1 for parts that know no timestep.
        tau, groups, copy_spread: as ESBinaryConv2d: C/tau filters over tau*g*C channels, tiled tau^2*g times.
        ste, clip: of the sign. weight_quantizer, latent_init: as BinaryConv2d.
        shift: TimestepShift in front of the sign, or the bare sign. act: TimestepRPReLU or none.
        residual: where x is added: "after_act" as above, "before_act" in front of the RPReLU (ReActNet), "none".
        name: the unit's name, for errors alone.

    Raises:
        InputError: tau*groups does not divide channels; an even kernel; an unknown act or residual; a spread without
            shift.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        timestep_groups: int = 5,
        tau: int = 1,
        groups: int = 1,
        copy_spread: float = 0.0,
        ste: STE = "poly2",
        clip: float = 1.0,
        weight_quantizer: str | WeightQuantizer = "absmean",
        latent_init: LatentInit = "uniform",
        shift: bool = True,
        act: TimestepAct = "rprelu",
        residual: TimestepResidual = "after_act",
        name: str = "",
    ) -> None:
        super().__init__()
        for given, known in ((act, get_args(TimestepAct)), (residual, get_args(TimestepResidual))):
            if given not in known:
                raise InputError(f"unit {name or '(unnamed)'} was given {given!r}, one of {known} was expected")
        if kernel_size % 2 == 0:
            raise InputError(
                f"kernel_size={kernel_size} was given for unit {name or '(unnamed)'}, an odd number was expected: an "
                f"even one changes the size of the map, and the input could not be added"
            )
        widths = es_widths(channels, channels, tau, groups, layer=name)
        if copy_spread and not shift:
            raise InputError(
                f"copy_spread={copy_spread} was given for unit {name or '(unnamed)'}, which has a bare sign and no "
                f"shift to spread: leave it at 0 or give the unit a shift"
            )
        self.tau, self.groups, self.residual = tau, groups, residual
        self.timestep_groups = timestep_groups
        self.shift = TimestepShift(widths.carried_in, timestep_groups, widths.copies, copy_spread) if shift else None
        self.conv = BinaryConv2d(
            widths.carried_in,
            widths.filters,
            kernel_size,
            padding=kernel_size // 2,
            groups=groups,
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
        """x (N, tau*g*C, H, W); group int64 (N,), each sample's timestep group, or (1,) for the whole batch."""
        y: Tensor = self.tile(self.conv(x if self.shift is None else self.shift(x, group)))
        if self.residual == "before_act":
            y = y + x
        after = x if self.residual == "after_act" else None
        if self.act is not None:
            y = self.act(y, group, after)
        elif after is not None:
            y = y + after
        return y
