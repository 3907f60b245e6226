"""BinaryConv2d and its expand-shrink form ESBinaryConv2d (papers.md#weight-quantizers, #borders, #es)."""

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from esbnn_core.errors import check_choice
from esbnn_core.layers.activations import Sign, spread_sign
from esbnn_core.layers.base import BinaryLayer, LatentInit, check_groups, describe_convolution
from esbnn_core.layers.quantizers import STE, QuantizerChoice
from esbnn_core.layers.widths import Expansion, es_widths, tile

PAD_VALUES = (0, -1)
"""What the border of a binary convolution may hold, after the sign."""


class BinaryConv2d(BinaryLayer):
    """Convolution of +-1 activations with +-1 weights: (N, C, H, W) -> (N, O, H', W').

    The sum of +-1 products is formed first, exactly, then multiplied by the output scale.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: as torch.nn.Conv2d, like stride, padding, dilation, groups and bias.
        stride: of the convolution.
        padding: pixels added on each side, after the sign.
        pad_value: of the border after the sign: 0 (most papers) or -1 (BiDet, papers.md#borders).
        dilation: of the kernel.
        groups: of the convolution.
        bias: a real bias (O,), added after the scale.
        weight_quantizer: a name of WEIGHT_QUANTIZERS (esbnn_core.layers.quantizers), a function, or an instance.
        activation: STE of the input's sign or a Sign or RSign module; None promises an input of +-1.
        clip: half width of the "clip" STE.
        learned_scale: a learnable scale (O,) of the output.
        latent_init: start of the latent weight, see LatentInit of esbnn_core.layers.base.

    Sums are exact in float32 and float64. Under autocast training runs in the narrow type, evaluation does not.

    Raises:
        InputError: a pad_value other than 0 and -1; groups that do not divide the channels; an unknown quantizer or
            latent_init.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        pad_value: int = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        weight_quantizer: QuantizerChoice = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
    ) -> None:
        check_choice("pad_value", pad_value, PAD_VALUES)
        check_groups(groups, in_channels, out_channels)
        kernel = _pair(kernel_size)
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(shape, bias, weight_quantizer, activation, clip, learned_scale, latent_init)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size: tuple[int, int] = kernel
        self.stride: tuple[int, int] = _pair(stride)
        self.padding: tuple[int, int] = _pair(padding)
        self.dilation: tuple[int, int] = _pair(dilation)
        self.pad_value, self.groups = pad_value, groups
        self.copies = 1

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """The scaled output, or the bare sum of +-1 products with scaled=False."""
        total = self.total(x, self._convolve)
        return self.scaled(total, (1, -1, 1, 1)) if scaled else total

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.padding
        if self.pad_value == -1 and any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=-1.0)
            padding = (0, 0)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return describe_convolution(self, {"pad_value": 0, "dilation": (1, 1), "groups": 1})


class ESBinaryConv2d(BinaryConv2d):
    """Expand-shrink binary convolution on a carried map: (N, tau*g*C, H, W) -> (N, tau*g*O, H', W') (Figure 2b, 2c).

    O/tau filters in g groups over tau*g*C channels, tiled tau^2*g times: the operations and weights of C -> O. A
    BatchNorm over the tau*g*O channels has to follow, because it makes the copies differ (BinaryUnit has both).

    Args:
        in_channels: nominal C.
        out_channels: nominal O.
        kernel_size: as BinaryConv2d, like every argument not named here.
        tau: expansion factor.
        groups: groups g.
        copy_spread: s > 0 makes the input's sign an RSign whose copies start as a thermometer code
            (thermometer_shift of esbnn_core.layers.widths); 0 leaves it as `activation` gives it.
        name: the layer's name, for errors alone.

    Raises:
        InputError: tau*groups does not divide out_channels; a copy_spread without an estimator's name as activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        pad_value: int = 0,
        dilation: int | tuple[int, int] = 1,
        weight_quantizer: QuantizerChoice = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
        name: str = "",
    ) -> None:
        expansion = Expansion(tau, groups, copy_spread)
        widths = es_widths(in_channels, out_channels, expansion, layer=name)
        super().__init__(
            widths.carried_in,
            widths.filters,
            kernel_size,
            stride,
            padding,
            pad_value=pad_value,
            dilation=dilation,
            groups=groups,
            weight_quantizer=weight_quantizer,
            activation=spread_sign(widths.carried_in, expansion, activation, clip),
            clip=clip,
            learned_scale=learned_scale,
            latent_init=latent_init,
        )
        self.tau, self.copies = tau, widths.copies

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """The tiled output, or the tiled bare sum with scaled=False."""
        return tile(super().forward(x, scaled), self.copies)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}, copies={self.copies}"
