"""The two products of attention, scores and mix, of real or of binary queries, keys and values.

papers.md#attention-products
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers.activations import RSign, Sign
from esbnn_core.layers.attention import BinaryMatmul, BinarySoftmax
from esbnn_core.layers.quantizers import STE

Products = Literal["real", "binary"]
"""What attention multiplies: real queries, keys, values and probabilities, or their bits."""


class AttentionProducts(nn.Module):
    """softmax(q k^T * scale + bias) v: (B, L, H*D), (B, S, H*D), (B, S, H*D) -> (B, L, H*D).

    Args:
        heads: H.
        cosine: queries and keys of length 1 in each head (Swin V2).
    """

    def __init__(self, heads: int, cosine: bool = False) -> None:
        super().__init__()
        self.heads, self.cosine = heads, cosine

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The mixed values, and the probabilities (B, H, L, S) after dropout where they are asked for.

        Args:
            q: queries.
            k: keys.
            v: values.
            scale: of cosine scores, (H, 1, 1); all others are divided by sqrt(D).
            bias: added to the scores, any shape that broadcasts to (B, H, L, S); -inf where nothing may be read.
            dropout: share of the probabilities set to 0, in training alone.
            need_weights: whether to return the probabilities.
        """
        raise NotImplementedError

    def split(self, x: Tensor) -> Tensor:
        """(B, N, H*D) -> (B, H, N, D)."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}" + (", cosine" if self.cosine else "")


class RealProducts(AttentionProducts):
    """torch's scaled_dot_product_attention, or the same step by step where the probabilities are asked for.

    Step by step is one computation with and without gradients. torch takes another kernel for a bias with a gradient.
    """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.split(q), self.split(k), self.split(v)
        factor: float | None = None  # 1/sqrt(D)
        if self.cosine:
            assert scale is not None
            q, k, factor = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), 1.0
        dropout = dropout if self.training else 0.0
        p: Tensor | None = None
        if need_weights:
            scores = (q * (q.shape[-1] ** -0.5 if factor is None else factor)) @ k.transpose(-2, -1)
            p = F.dropout(F.softmax(scores if bias is None else scores + bias, dim=-1), dropout, self.training)
            mixed = p @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=factor)
        # autocast makes the products narrow: what follows reads the dtype that the projections have
        return mixed.transpose(1, 2).flatten(2).to(v.dtype), p


class BinaryProducts(AttentionProducts):
    """Products of signs of q, k and v and of probabilities that are 0 or c (BinaryViT, papers.md#binaryvit-attention).

    Both products are whole numbers, exact in float32.

    Args:
        channels: H*D.
        heads: H.
        cosine: as AttentionProducts.
        shift: signs with a learnable shift a channel, or bare ones.
        ste: estimator of the signs.
        clip: half width of the "clip" estimator.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        cosine: bool = False,
        shift: bool = True,
        ste: STE = "poly2",
        clip: float = 1.0,
    ) -> None:
        super().__init__(heads, cosine)

        def make_sign() -> Sign:
            return RSign(channels, ste, clip, channel_dim=-1) if shift else Sign(ste, clip, channel_dim=-1)

        self.sign_q, self.sign_k, self.sign_v = make_sign(), make_sign(), make_sign()
        self.scores, self.softmax, self.mix = BinaryMatmul(), BinarySoftmax(relative=True), BinaryMatmul()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.split(self.sign_q(q)), self.split(self.sign_k(k)), self.split(self.sign_v(v))
        width = q.shape[-1]  # of a head; signs have a length of sqrt(width)
        scores = self.scores(q, k.transpose(-2, -1)) * (width**-0.5 if scale is None else scale / width)
        scores = scores if bias is None else scores + bias
        p, level = self.softmax(scores), self.softmax.level(scores)
        p = p / level if self.training else p  # {0, 1} as in evaluation, so that a sum of 0 is 0 in both
        p = F.dropout(p, dropout, self.training)
        mixed = self.mix(p, v) * level
        return mixed.transpose(1, 2).flatten(2), p * level if need_weights else None
