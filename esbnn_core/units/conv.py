"""BinaryUnit: shift -> sign -> conv -> tile -> norm -> act (+ shortcut), the one brick every network is made of."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryConv2d, PositiveSign, RPReLU, RSign, Sign, Tile
from esbnn_core.layers.base import LatentInit, TrainingPath
from esbnn_core.layers.quantizers import STE, WeightQuantizer
from esbnn_core.layers.widths import es_widths
from esbnn_core.units.folding import fold_norm, folds

Act = Literal["none", "rprelu", "prelu", "hardtanh"]


class BinaryUnit(nn.Module):
    """One binary convolution with all that stands around it, plain or expanded (Figure 2a, 2b, 2c).

        y = norm(tile(conv(sign(x + shift))));  y = inner_act(y);  y = y + shortcut(x);  y = act(y)

    (N, tau*g*C, H, W) -> (N, tau*g*O, H', W'). With tau = groups = 1 there is no tile and the unit is the plain one.
    Outside training a BatchNorm with running statistics is folded (fold_norm) and the sum stays an exact whole number.

    Args:
        in_channels, out_channels: nominal C and O. kernel_size, stride: square. padding: default kernel_size // 2.
        pad_value, dilation: as BinaryConv2d. tau, groups, copy_spread: as ESBinaryConv2d; the spread needs shift=True.
        shift: RSign (learnable shift) in place of the bare sign. ste, clip: of the sign.
        weight_quantizer, learned_scale, latent_init, bias: as BinaryConv2d; a bias (O/tau,) in front of the tile.
        norm: BatchNorm over the carried output, or none. inner_act: per-channel PReLU before the shortcut (BNext).
        act: after the shortcut: "rprelu", "prelu", "hardtanh" or "none".
        shortcut: None for no shortcut, nn.Identity() or a module that maps x to the shape of y.
        rectified: for an input out of a ReLU, where sign(0) = +1 would leave a constant: the signs are 1 where x > 0
            and 0 elsewhere, as torch.sign's. One bit holds them as s = +-1, for sum of w * (s + 1) / 2 is
            (sum of w * s + sum of w) / 2, exactly. Only without shift and padding.
        name: the unit's name, for errors alone.

    Raises:
        InputError: tau*groups does not divide out_channels; a spread without shift; an unknown act; rectified with a
            shift or padding.
    """

    training_path: TrainingPath | None = None
    """Another way through the unit in training (esbnn_core.training.on_bits sets it)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        *,
        pad_value: int = 0,
        dilation: int = 1,
        tau: int = 1,
        groups: int = 1,
        copy_spread: float = 0.0,
        shift: bool = True,
        ste: STE = "poly2",
        clip: float = 1.0,
        weight_quantizer: str | WeightQuantizer = "absmean",
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
        bias: bool = False,
        norm: bool = True,
        inner_act: bool = False,
        act: Act = "rprelu",
        shortcut: nn.Module | None = None,
        rectified: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        if rectified and (shift or padding):
            raise InputError(
                f"unit {name or '(unnamed)'} was asked to be rectified with shift={shift} and padding={padding}, "
                f"neither was expected: signs of 0 and 1 have no border of -1 and no threshold to shift"
            )
        widths = es_widths(in_channels, out_channels, tau, groups, layer=name)
        if copy_spread and not shift:
            raise InputError(
                f"copy_spread={copy_spread} was given for unit {name or '(unnamed)'}, which has a bare sign and no "
                f"shift to spread: leave it at 0 or choose a network with RSign"
            )
        if shift:
            sign: Sign = RSign(widths.carried_in, ste, clip, copies=widths.copies, copy_spread=copy_spread)
        else:
            sign = PositiveSign(widths.carried_in, ste, clip) if rectified else Sign(ste, clip)
        self.rectified = rectified
        self.tau, self.groups = tau, groups
        self.conv = BinaryConv2d(
            widths.carried_in,
            widths.filters,
            kernel_size,
            stride,
            padding,
            pad_value=pad_value,
            dilation=dilation,
            groups=groups,
            bias=bias,
            weight_quantizer=weight_quantizer,
            activation=sign,
            learned_scale=learned_scale,
            latent_init=latent_init,
        )
        self.tile: nn.Module = Tile(widths.copies) if widths.copies > 1 else nn.Identity()
        self.norm: nn.Module = nn.BatchNorm2d(widths.carried_out) if norm else nn.Identity()
        self.inner_act: nn.Module = nn.PReLU(widths.carried_out) if inner_act else nn.Identity()
        self.shortcut = shortcut
        self.act = make_act(act, widths.carried_out)

    @property
    def copies(self) -> int:
        """tau^2*g."""
        return self.tile.copies if isinstance(self.tile, Tile) else 1

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Folded scale and bias (carried_out,) of the exact sum, as both evaluation paths use them."""
        return fold_norm(*self.own_affine(), self.norm, self.copies)

    def own_affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and bias (O,) of the sum in front of tile and norm."""
        scale, bias = self.conv.output_scale(), self.conv.bias
        if not self.rectified:
            return scale, bias
        ones = self.conv.quantizer.binary(self.conv.weight).flatten(1).sum(1)
        scale = 0.5 * torch.ones_like(ones) if scale is None else 0.5 * scale
        return scale, ones * scale if bias is None else ones * scale + bias

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.training_path is not None:
            done = self.training_path(self, x)
            if done is not None:
                return done
        if folds(self.norm):
            y = self.tile(self.conv(x, scaled=False))
            scale, bias = self.affine()
            y = y if scale is None else y * scale.view(1, -1, 1, 1)
            y = y if bias is None else y + bias.view(1, -1, 1, 1)
        elif self.rectified:
            scale, bias = (v.view(1, -1, 1, 1) for v in self.own_affine() if v is not None)
            y = self.norm(self.tile(self.conv(x, scaled=False) * scale + bias))
        else:
            y = self.norm(self.tile(self.conv(x)))
        y = self.inner_act(y)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        out: Tensor = self.act(y)
        return out


def make_act(act: Act, channels: int) -> nn.Module:
    """The activation named, over `channels` channels."""
    if act not in get_args(Act):
        raise InputError(f"activation {act!r} is not known, one of {', '.join(get_args(Act))} was expected")
    if act == "rprelu":
        return RPReLU(channels)
    if act == "prelu":
        return nn.PReLU(channels)
    return nn.Hardtanh() if act == "hardtanh" else nn.Identity()
