"""BinaryLinear and its expand-shrink version (papers.md#weight-quantizers, #es-transformer)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.layers.activations import Sign, spread_sign
from esbnn_core.layers.base import BinaryLayer, LatentInit
from esbnn_core.layers.quantizers import STE, WeightQuantizer
from esbnn_core.layers.widths import es_widths, tile


class BinaryLinear(BinaryLayer):
    """Matrix product of +-1 features with +-1 weights: (..., I) -> (..., O).

    Args:
        in_features, out_features, bias: as torch.nn.Linear. groups: as in a convolution, over contiguous features.
        The others: as BinaryConv2d; `activation` signs over the last dimension.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        groups: int = 1,
        weight_quantizer: str | WeightQuantizer = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
    ) -> None:
        if in_features % groups or out_features % groups:
            raise InputError(f"groups={groups} was given, a divisor of {in_features} and {out_features} was expected")
        shape = (out_features, in_features // groups)
        super().__init__(shape, bias, weight_quantizer, activation, clip, learned_scale, latent_init)
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.copies = 1

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """Scaled output, or with scaled=False the bare sum of +-1 products."""
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
    """Expand-shrink binary linear on carried features: (..., tau*g*I) -> (..., tau*g*O); as ESBinaryConv2d."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        weight_quantizer: str | WeightQuantizer = "absmean",
        activation: STE | Sign | None = "poly2",
        clip: float = 1.0,
        learned_scale: bool = False,
        latent_init: LatentInit = "uniform",
        name: str = "",
    ) -> None:
        widths = es_widths(in_features, out_features, tau, groups, layer=name)
        super().__init__(
            widths.carried_in,
            widths.filters,
            groups=groups,
            weight_quantizer=weight_quantizer,
            activation=spread_sign(widths.carried_in, widths.copies, copy_spread, activation, clip, dim=-1),
            clip=clip,
            learned_scale=learned_scale,
            latent_init=latent_init,
        )
        self.tau, self.copies = tau, widths.copies

    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        """Tiled output, scaled or the bare sum as BinaryLinear."""
        return tile(super().forward(x, scaled), self.copies, dim=-1)
