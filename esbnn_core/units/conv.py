"""BinaryUnit: shift -> sign -> conv -> tile -> norm -> act (+ shortcut), the brick of every convolutional network."""

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryConv2d, PositiveSign, RSign, Sign, Tile
from esbnn_core.layers.base import TrainingPath
from esbnn_core.layers.widths import PLAIN, Expansion, es_widths
from esbnn_core.units.folding import fold_norm, folds
from esbnn_core.units.style import DEFAULT_STYLE, UnitStyle, make_act


class BinaryUnit(nn.Module):
    """One binary convolution with everything around it, plain or expanded (Figure 2a, 2b, 2c).

        y = norm(tile(conv(sign(x + shift))));  y = inner_act(y);  y = y + shortcut(x);  y = act(y)

    (N, tau*g*C, H, W) -> (N, tau*g*O, H', W'). With tau = groups = 1 there is no tile and the unit is the plain one.
    Outside training a BatchNorm with running statistics is folded (fold_norm) and the sum stays an exact whole number.

    Args:
        in_channels: nominal C.
        out_channels: nominal O.
        kernel_size: side of the square kernel.
        stride: of the convolution.
        padding: pixels on each side, default kernel_size // 2.
        dilation: of the kernel.
        style: how the unit binarises, and its activation.
        expansion: tau and groups; its copy_spread needs a style with shift.
        bias: a real bias (O/tau,) in front of the tile.
        norm: BatchNorm over the carried output, or none.
        inner_act: a PReLU per channel before the shortcut (BNext).
        shortcut: None for no shortcut, nn.Identity(), or a module that maps x to the shape of y.
        rectified: for an input that comes out of a ReLU, where sign(0) = +1 would leave a constant. The signs are 1
            for x > 0 and 0 elsewhere, as torch.sign's. One bit holds them as s = +-1, because the sum of
            w * (s + 1) / 2 is (sum of w * s + sum of w) / 2, exactly. Only without shift and padding.
        name: the unit's name, for errors alone.

    Raises:
        InputError: tau*groups does not divide out_channels; a copy_spread without shift; rectified with a shift or
            padding.
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
        dilation: int = 1,
        style: UnitStyle = DEFAULT_STYLE,
        expansion: Expansion = PLAIN,
        bias: bool = False,
        norm: bool = True,
        inner_act: bool = False,
        shortcut: nn.Module | None = None,
        rectified: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        if rectified and (style.shift or padding):
            raise InputError(
                f"unit {name or '(unnamed)'} must have no shift and no padding to be rectified, got "
                f"shift={style.shift} and padding={padding}: signs of 0 and 1 have no border of -1 and no threshold"
            )
        widths = es_widths(in_channels, out_channels, expansion, layer=name)
        self.rectified = rectified
        self.tau, self.groups = expansion.tau, expansion.groups
        self.conv = BinaryConv2d(
            widths.carried_in,
            widths.filters,
            kernel_size,
            stride,
            padding,
            pad_value=style.pad_value,
            dilation=dilation,
            groups=widths.groups,
            bias=bias,
            weight_quantizer=style.weight_quantizer,
            activation=_make_sign(widths.carried_in, style, expansion, rectified, name),
            learned_scale=style.learned_scale,
            latent_init=style.latent_init,
        )
        self.tile: nn.Module = Tile(widths.copies) if widths.copies > 1 else nn.Identity()
        self.norm: nn.Module = nn.BatchNorm2d(widths.carried_out) if norm else nn.Identity()
        self.inner_act: nn.Module = nn.PReLU(widths.carried_out) if inner_act else nn.Identity()
        self.shortcut = shortcut
        self.act = make_act(style.act, widths.carried_out)

    @property
    def copies(self) -> int:
        """tau^2*g."""
        return self.tile.copies if isinstance(self.tile, Tile) else 1

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Folded scale and bias (carried_out,) of the exact sum, as both evaluation paths use them."""
        return fold_norm(*self.conv_affine(), self.norm, self.copies)

    def conv_affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and bias (O/tau,) of the sum, in front of tile and norm."""
        scale, bias = self.conv.output_scale(), self.conv.bias
        if not self.rectified:
            return scale, bias
        ones = self.conv.quantizer.binary(self.conv.filters).flatten(1).sum(1)
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
            scale, bias = (v.view(1, -1, 1, 1) for v in self.conv_affine() if v is not None)
            y = self.norm(self.tile(self.conv(x, scaled=False) * scale + bias))
        else:
            y = self.norm(self.tile(self.conv(x)))
        y = self.inner_act(y)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        out: Tensor = self.act(y)
        return out


def _make_sign(channels: int, style: UnitStyle, expansion: Expansion, rectified: bool, name: str) -> Sign:
    """The sign of the unit's input over its carried channels."""
    spread = expansion.copy_spread
    if style.shift:
        return RSign(channels, style.ste, style.clip, copies=expansion.copies, copy_spread=spread)
    if spread:
        raise InputError(
            f"copy_spread of unit {name or '(unnamed)'} must be 0, got {spread}: its sign has no shift to spread, "
            f"choose a network with RSign to use it"
        )
    return PositiveSign(channels, style.ste, style.clip) if rectified else Sign(style.ste, style.clip)
