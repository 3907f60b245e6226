"""BinaryLinear and its expand-shrink form ESBinaryLinear (papers.md#weight-quantizers, #es-transformer)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.layers.activations import Sign, spread_sign
from esbnn_core.layers.base import BinaryLayer, LatentInit, check_groups
from esbnn_core.layers.quantizers import STE, QuantizerChoice
from esbnn_core.layers.widths import Expansion, es_widths, tile


class BinaryLinear(BinaryLayer):
    """Matrix product of +-1 features with +-1 weights: (..., I) -> (..., O).

    Args:
        in_features: I.
        out_features: O.
        bias: a real bias (O,), added after the scale.
        groups: as in a convolution, over contiguous features.
        weight_quantizer: as BinaryConv2d, like every argument not named here.
        activation: as BinaryConv2d, over the last dimension.

    Raises:
        InputError: groups that do not divide the features; an unknown quantizer or latent_init.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        groups: int = 1,
        weight_quantizer: QuantizerChoice = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
    ) -> None:
        check_groups(groups, in_features, out_features, "features")
        shape = (out_features, in_features // groups)
        super().__init__(shape, bias, weight_quantizer, activation, clip, learned_scale, latent_init)
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.copies = 1

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """The scaled output, or the bare sum of +-1 products with scaled=False."""
        total = self.total(x, self._multiply)
        return self.scaled(total, (-1,)) if scaled else total

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.groups == 1:
            return F.linear(x, weight)
        split = zip(x.chunk(self.groups, -1), weight.chunk(self.groups, 0), strict=True)
        return torch.cat([F.linear(part, rows) for part, rows in split], dim=-1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + (f", groups={self.groups}" if self.groups > 1 else "")


class ESBinaryLinear(BinaryLinear):
    """Expand-shrink binary linear layer on carried features: (..., tau*g*I) -> (..., tau*g*O), as ESBinaryConv2d."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        weight_quantizer: QuantizerChoice = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
        name: str = "",
    ) -> None:
        expansion = Expansion(tau, groups, copy_spread)
        widths = es_widths(in_features, out_features, expansion, layer=name)
        super().__init__(
            widths.carried_in,
            widths.filters,
            groups=groups,
            weight_quantizer=weight_quantizer,
            activation=spread_sign(widths.carried_in, expansion, activation, clip, channel_dim=-1),
            clip=clip,
            learned_scale=learned_scale,
            latent_init=latent_init,
        )
        self.tau, self.copies = tau, widths.copies

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """The tiled output, or the tiled bare sum with scaled=False."""
        return tile(super().forward(x, scaled), self.copies, dim=-1)
