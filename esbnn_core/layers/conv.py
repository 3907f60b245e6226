"""BinaryConv2d and its expand-shrink version (papers.md#weight-quantizers, #borders, #es)."""

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from esbnn_core.errors import InputError
from esbnn_core.layers.activations import Sign, spread_sign
from esbnn_core.layers.base import BinaryLayer, LatentInit
from esbnn_core.layers.quantizers import STE, WeightQuantizer
from esbnn_core.layers.widths import es_widths, tile


class BinaryConv2d(BinaryLayer):
    """Convolution of +-1 activations with +-1 weights: (N, C, H, W) -> (N, O, H', W').

    The sum of +-1 products is formed first, exactly, then multiplied by the output scale.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as torch.nn.Conv2d.
        pad_value: what the border holds after the sign: 0 (most papers) or -1 (BiDet) (papers.md#borders).
        weight_quantizer: "absmean" (default), another name of esbnn_core.layers.quantizers, or an instance.
        activation: STE of the input's sign (default "poly2") or a Sign/RSign module; None promises +-1 input.
        clip, learned_scale, latent_init: see BinaryLayer.

    dtype: float32 or float64 give exact sums; under autocast training runs in the narrow type, evaluation does not.

    Raises:
        InputError: a pad value that is not 0 or -1, groups that do not divide the channels.
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
        weight_quantizer: str | WeightQuantizer = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
    ) -> None:
        if pad_value not in (0, -1):
            raise InputError(f"pad_value={pad_value!r} was given, 0 or -1 was expected")
        if in_channels % groups or out_channels % groups:
            raise InputError(f"groups={groups} was given, a divisor of {in_channels} and {out_channels} was expected")
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
        """Scaled output, or with scaled=False the bare sum of +-1 products."""
        total = self.total(x, self._convolve)
        return self.scaled(total, (1, -1, 1, 1)) if scaled else total

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.padding
        if self.pad_value == -1 and any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=-1.0)
            padding = (0, 0)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}"
        for name, default in (("pad_value", 0), ("dilation", (1, 1)), ("groups", 1)):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


class ESBinaryConv2d(BinaryConv2d):
    """Expand-shrink binary convolution on a carried map: (N, tau*g*C, H, W) -> (N, tau*g*O, H', W') (Figure 2b, 2c).

    O/tau filters in g groups over tau*g*C channels, tiled tau^2*g times: operations and weights of C -> O. What makes
    the copies differ, a BatchNorm over the tau*g*O channels, comes after it (BinaryUnit has both).

    Args:
        in_channels, out_channels: nominal widths C and O. tau, groups: expansion factor and groups g.
        copy_spread: > 0 makes the input's sign an RSign whose copies start as a thermometer code
            (esbnn_core.layers.widths.thermometer_shift; Differs from the paper); 0 leaves it as `activation` says.
        name: the layer's name, for errors alone. The others: as BinaryConv2d.

    Raises:
        InputError: tau*groups does not divide out_channels; copy_spread without an activation to shift.
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
        weight_quantizer: str | WeightQuantizer = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
        name: str = "",
    ) -> None:
        widths = es_widths(in_channels, out_channels, tau, groups, layer=name)
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
            activation=spread_sign(widths.carried_in, widths.copies, copy_spread, activation, clip),
            clip=clip,
            learned_scale=learned_scale,
            latent_init=latent_init,
        )
        self.tau, self.copies = tau, widths.copies

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """Tiled output, scaled or the bare sum as BinaryConv2d."""
        return tile(super().forward(x, scaled), self.copies)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}, copies={self.copies}"
