"""BinaryConvTranspose2d and its expand-shrink form ESBinaryConvTranspose2d (papers.md#transposed, #es)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from esbnn_core.errors import InputError
from esbnn_core.layers.activations import Sign, spread_sign
from esbnn_core.layers.base import BinaryLayer, LatentInit, check_groups, describe_convolution
from esbnn_core.layers.quantizers import STE, QuantizerChoice
from esbnn_core.layers.widths import Expansion, es_widths, tile

Pair = tuple[int, int]


class BinaryConvTranspose2d(BinaryLayer):
    """Transposed convolution of +-1 activations with +-1 weights: (N, C, H, W) -> (N, O, H', W').

    The sum of +-1 products is formed first, exactly, then multiplied by the output scale. Zeros that a transposed
    convolution has between and around its inputs add nothing: an output sums the taps that fall on inputs, and one that
    no input reaches is 0 before scale and bias.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: as torch.nn.ConvTranspose2d, like stride, padding, output_padding, groups, bias and dilation.
        stride: of the transposed convolution.
        padding: pixels of the full output that are left out on each side.
        output_padding: pixels added at the end of the output.
        groups: of the convolution.
        bias: a real bias (O,), added after the scale.
        dilation: of the kernel.
        weight_quantizer: as BinaryConv2d, like every argument not named here. Scales are one a filter.

    The latent weight has torch's shape (I, O/groups, *k), `filters` shows it as (O, I/groups, *k). Sums and dtypes are
    as those of BinaryConv2d.

    Raises:
        InputError: groups that do not divide the channels; an output_padding that is not smaller than stride or
            dilation; an unknown quantizer or latent_init.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = False,
        dilation: int | Pair = 1,
        *,
        weight_quantizer: QuantizerChoice = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
    ) -> None:
        check_groups(groups, in_channels, out_channels)
        kernel: Pair = _pair(kernel_size)
        shape = (in_channels, out_channels // groups, *kernel)
        super().__init__(
            shape, bias, weight_quantizer, activation, clip, learned_scale, latent_init, out_channels=out_channels
        )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size: Pair = kernel
        self.stride: Pair = _pair(stride)
        self.padding: Pair = _pair(padding)
        self.output_padding: Pair = _pair(output_padding)
        self.dilation: Pair = _pair(dilation)
        check_output_padding(self.output_padding, self.stride, self.dilation)
        self.copies = 1

    @property
    def filters(self) -> Tensor:
        """The latent weight as (O, I/groups, *k), a view with its gradient."""
        return filters_of(self.weight, self.groups)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None, *, scaled: bool = True) -> Tensor:
        """The scaled output, or the bare sum of +-1 products with scaled=False.

        Args:
            x: (N, C, H, W).
            output_size: (H', W') or a whole shape that ends with them, in place of output_padding.
            scaled: whether scale and bias follow.

        Raises:
            InputError: an output_size that no output_padding gives.
        """
        output_padding = self.output_padding
        if output_size is not None:
            output_padding = padding_for(
                output_size, x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation
            )

        def convolve(signs: Tensor, filters: Tensor) -> Tensor:
            weight = weight_of(filters, self.groups)
            shape = (self.stride, self.padding, output_padding, self.groups, self.dilation)
            return F.conv_transpose2d(signs, weight, None, *shape)

        total = self.total(x, convolve, output_padding)
        return self.scaled(total, (1, -1, 1, 1)) if scaled else total

    def extra_repr(self) -> str:
        return describe_convolution(self, {"output_padding": (0, 0), "dilation": (1, 1), "groups": 1})


class ESBinaryConvTranspose2d(BinaryConvTranspose2d):
    """Expand-shrink transposed convolution: (N, tau*g*C, H, W) -> (N, tau*g*O, H', W'), as ESBinaryConv2d.

    Args:
        in_channels: nominal C.
        out_channels: nominal O.
        kernel_size: as BinaryConvTranspose2d, like every argument not named here.
        tau: as ESBinaryConv2d, like groups, copy_spread and name.

    Raises:
        InputError: as ESBinaryConv2d and BinaryConvTranspose2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        *,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        dilation: int | Pair = 1,
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
            output_padding,
            groups,
            dilation=dilation,
            weight_quantizer=weight_quantizer,
            activation=spread_sign(widths.carried_in, expansion, activation, clip),
            clip=clip,
            learned_scale=learned_scale,
            latent_init=latent_init,
        )
        self.tau, self.copies = tau, widths.copies

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None, *, scaled: bool = True) -> Tensor:
        """The tiled output, or the tiled bare sum with scaled=False."""
        return tile(super().forward(x, output_size, scaled=scaled), self.copies)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}, copies={self.copies}"


def filters_of(weight: Tensor, groups: int) -> Tensor:
    """(I, O/groups, *k) as (O, I/groups, *k), as a convolution has its weight."""
    filters: Tensor = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return filters


def weight_of(filters: Tensor, groups: int) -> Tensor:
    """(O, I/groups, *k) as (I, O/groups, *k), the inverse of filters_of."""
    return filters_of(filters, groups)


def check_output_padding(output_padding: Pair, stride: Pair, dilation: Pair) -> None:
    """Raise InputError for an output_padding that torch's transposed convolution does not take."""
    for given, step, reach in zip(output_padding, stride, dilation, strict=True):
        if not 0 <= given < max(step, reach):
            raise InputError(
                f"output_padding must be at least 0 and smaller than stride or dilation, {stride} and {dilation}, got "
                f"{output_padding}"
            )


def padding_for(
    output_size: Sequence[int], size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    """The output_padding that gives an output_size, (H', W') or a whole shape, for an input of `size` (H, W).

    Raises:
        InputError: none smaller than the stride gives it.
    """
    if len(output_size) not in (2, 4):
        raise InputError(f"output_size must be (H, W) or (N, C, H, W), got {tuple(output_size)}")
    added = []
    for i, wanted in enumerate(output_size[-2:]):
        least = (size[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1
        if not 0 <= wanted - least < stride[i]:
            raise InputError(
                f"output_size must be {least} to {least + stride[i] - 1} along dimension {2 + i} for an input of "
                f"{size[i]} and stride {stride[i]}, got {wanted}: give the size of the map that the input was made "
                f"from with the same stride"
            )
        added.append(wanted - least)
    return added[0], added[1]
