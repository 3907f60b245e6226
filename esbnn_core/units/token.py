"""TokenUnit: shift -> sign -> linear -> tile -> norm (+ skip) -> RPReLU on tokens, the brick of binary ViTs."""

from torch import Tensor, nn

from esbnn_core.layers import BinaryLinear, RPReLU, RSign, Tile
from esbnn_core.units.folding import fold_norm, folds


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """BatchNorm of tokens (B, N, C) per channel, over batch and tokens; the norm may be a SyncBatchNorm."""
    out: Tensor = norm(x.flatten(0, -2)).view(x.shape)
    return out


class TokenUnit(nn.Module):
    """One binary linear layer with everything around it.

        y = rprelu(norm(tile(linear(sign(x + shift)))) + skip)

    (B, N, in_features) -> (B, N, copies*filters); skip has that shape. The weights are centred by row and scaled by
    their mean magnitude. Outside training the norm is folded and the sum stays an exact whole number, as in BinaryUnit.
    Of BinaryViT (papers.md#binaryvit-attention, #binaryvit-ffn, #es-transformer).

    Args:
        in_features: carried input width.
        filters: rows that the layer computes.
        copies: how often the rows are tiled.
        groups: of the linear layer.
        copy_spread: of the shift, as RSign.
        in_copies: how many tiled copies the input holds, as `copies` of RSign.
    """

    def __init__(
        self,
        in_features: int,
        filters: int,
        copies: int = 1,
        groups: int = 1,
        copy_spread: float = 0.0,
        in_copies: int = 1,
    ) -> None:
        super().__init__()
        sign = RSign(in_features, channel_dim=-1, copies=in_copies, copy_spread=copy_spread)
        self.linear = BinaryLinear(
            in_features,
            filters,
            groups=groups,
            weight_quantizer="absmean_centred",
            activation=sign,
            latent_init="fan_in",
        )
        self.tile: nn.Module = Tile(copies, dim=-1) if copies > 1 else nn.Identity()
        self.norm: nn.Module = nn.BatchNorm1d(copies * filters)
        self.act = RPReLU(copies * filters, channel_dim=-1)

    @property
    def copies(self) -> int:
        """How often the rows are tiled."""
        return self.tile.copies if isinstance(self.tile, Tile) else 1

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Folded scale and bias (copies*filters,) of the exact sum, as both evaluation paths use them."""
        return fold_norm(self.linear.output_scale(), None, self.norm, self.copies)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if folds(self.norm):
            y = self.tile(self.linear(x, scaled=False))
            scale, bias = self.affine()
            y = y if scale is None else y * scale
            y = y if bias is None else y + bias
        else:
            y = normalise(self.norm, self.tile(self.linear(x)))
        out: Tensor = self.act(y + skip)
        return out
