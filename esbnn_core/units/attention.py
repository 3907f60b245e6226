"""BinaryMultiheadAttention: torch's nn.MultiheadAttention with four binary projections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError, check_choice, check_counts
from esbnn_core.layers import BinaryLinear, RSign, Sign
from esbnn_core.layers.base import LatentInit
from esbnn_core.layers.products import AttentionProducts, BinaryProducts, Products, RealProducts
from esbnn_core.layers.quantizers import STE, WeightQuantizer


@dataclass(frozen=True)
class AttentionStyle:
    """How an attention module binarises.

    Attributes:
        shift: RSign, with a learnable shift, or the bare sign in front of the projections and of binary products.
        ste: estimator of the sign of the activations, see sign_ste of esbnn_core.layers.quantizers.
        clip: half width of the "clip" estimator.
        weight_quantizer: a name of WEIGHT_QUANTIZERS, or a function that makes a quantizer for each layer.
        learned_scale: as BinaryLinear.
        latent_init: start of the latent weights, see LatentInit of esbnn_core.layers.base.
        products: "real" multiplies queries, keys, values and probabilities as they are, "binary" their bits.

    Raises:
        InputError: unknown products.
    """

    shift: bool = True
    ste: STE = "poly2"
    clip: float = 1.0
    weight_quantizer: str | Callable[[], WeightQuantizer] = "absmean"
    learned_scale: bool = False
    latent_init: LatentInit = "xavier"
    products: Products = "real"

    def __post_init__(self) -> None:
        check_choice("products", self.products, get_args(Products))

    def make_linear(self, in_features: int, out_features: int, bias: bool) -> BinaryLinear:
        """A binary linear layer of this style on (..., in_features)."""
        if self.shift:
            sign: Sign = RSign(in_features, self.ste, self.clip, channel_dim=-1)
        else:
            sign = Sign(self.ste, self.clip, channel_dim=-1)
        return BinaryLinear(
            in_features,
            out_features,
            bias,
            weight_quantizer=self.weight_quantizer,
            activation=sign,
            learned_scale=self.learned_scale,
            latent_init=self.latent_init,
        )

    def make_products(self, channels: int, heads: int, cosine: bool = False) -> AttentionProducts:
        """The products of `heads` heads with `channels` channels together."""
        if self.products == "real":
            return RealProducts(heads, cosine)
        return BinaryProducts(channels, heads, cosine, self.shift, self.ste, self.clip)


class BinaryMultiheadAttention(nn.Module):
    """nn.MultiheadAttention with binary projections, called as that one: the same arguments, masks and results.

    It always calls its projections as modules. torch's fused attention, which reads weights, cannot step around them.

    Args:
        embed_dim: width of queries and of the output, a multiple of num_heads, like every argument up to batch_first as
            nn.MultiheadAttention.
        num_heads: of the attention.
        dropout: of the probabilities, in training.
        bias: of the projections.
        add_bias_kv: a learned key and value for all inputs (products="real" or "binary").
        add_zero_attn: a key and value of zeros (products="real" alone).
        kdim: width of the keys.
        vdim: width of the values.
        batch_first: (N, L, C) in place of (L, N, C).
        style: how it binarises.

    Raises:
        InputError: widths that do not fit; add_zero_attn with binary products, which have no 0.
    """

    in_proj_bias = None
    """torch's encoder layers take no fused path for an attention without this bias."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        style: AttentionStyle | None = None,
    ) -> None:
        super().__init__()
        style = style or AttentionStyle()
        check_counts(embed_dim=embed_dim, num_heads=num_heads)
        if embed_dim % num_heads:
            raise InputError(f"embed_dim must be a multiple of num_heads={num_heads}, got {embed_dim}")
        if add_zero_attn and style.products == "binary":
            raise InputError(
                "add_zero_attn must be False for binary products, got True: a key of zeros has no sign, use real ones"
            )
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self._qkv_same_embed_dim = self.kdim == self.vdim == embed_dim  # read by nn.TransformerEncoder
        self.q_proj = style.make_linear(embed_dim, embed_dim, bias)
        self.k_proj = style.make_linear(self.kdim, embed_dim, bias)
        self.v_proj = style.make_linear(self.vdim, embed_dim, bias)
        self.products = style.make_products(embed_dim, num_heads)
        self.out_proj = style.make_linear(embed_dim, embed_dim, bias)
        self.bias_k = nn.Parameter(torch.empty(1, 1, embed_dim)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, embed_dim)) if add_bias_kv else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh start values, as nn.MultiheadAttention does: biases of the projections are 0."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            projection.reset_parameters()
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        for row in (self.bias_k, self.bias_v):
            if row is not None:
                nn.init.xavier_normal_(row)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the attention's probabilities where they are asked for, as nn.MultiheadAttention.

        Args:
            query: (L, N, C), (N, L, C) with batch_first, or (L, C).
            key: likewise of length S and width kdim.
            value: likewise of length S and width vdim.
            key_padding_mask: (N, S) or (S,), True where a key is ignored, or numbers that are added to its scores.
            need_weights: return the probabilities (N, L, S), or (N, heads, L, S); None otherwise.
            attn_mask: (L, S) or (N*heads, L, S), True where attention is not allowed, or numbers for the scores.
            average_attn_weights: the mean over the heads in place of each.
            is_causal: a hint that attn_mask is causal, which has to be given all the same.

        Raises:
            InputError: shapes that do not fit; a hint without its mask; a nested tensor.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise InputError("query of a BinaryMultiheadAttention must be a padded tensor, got a nested one: pad it")
        if is_causal and attn_mask is None:
            raise InputError("attn_mask must be given where is_causal is True, got None: the hint alone is not a mask")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        bias = self._bias(q, k, attn_mask, key_padding_mask)
        extra = []
        if self.bias_k is not None and self.bias_v is not None:
            extra.append((self.bias_k, self.bias_v))
        if self.add_zero_attn:
            extra.append((k.new_zeros(1, 1, self.embed_dim),) * 2)
        for key_row, value_row in extra:
            k = torch.cat([k, key_row.to(k.dtype).expand(len(k), 1, -1)], dim=1)
            v = torch.cat([v, value_row.to(v.dtype).expand(len(v), 1, -1)], dim=1)
        if bias is not None and extra:
            bias = nn.functional.pad(bias, (0, len(extra)))
        out, p = self.products(q, k, v, None, bias, self.dropout, need_weights)
        out = self.out_proj(out)
        if p is not None and average_attn_weights:
            p = p.mean(1)
        if not batched:
            return out.squeeze(0), None if p is None else p.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), p

    def _bias(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Both masks as one term of the scores (N or 1, heads or 1, L or 1, S) of q (N, L, C) and k (N, S, C)."""
        (batch, length), keys = q.shape[:2], k.shape[1]
        bias: Tensor | None = None
        if attn_mask is not None:
            shapes = ((length, keys), (batch * self.num_heads, length, keys))
            if tuple(attn_mask.shape) not in shapes:
                raise InputError(f"attn_mask must have shape {shapes[0]} or {shapes[1]}, got {tuple(attn_mask.shape)}")
            shape = (1, 1, length, keys) if attn_mask.dim() == 2 else (batch, self.num_heads, length, keys)
            bias = _additive("attn_mask", attn_mask, q.dtype).view(shape)
        if key_padding_mask is not None:
            padding = key_padding_mask.unsqueeze(0) if key_padding_mask.dim() == 1 else key_padding_mask
            if tuple(padding.shape) != (batch, keys):
                raise InputError(f"key_padding_mask must have shape {(batch, keys)}, got {tuple(padding.shape)}")
            term = _additive("key_padding_mask", padding, q.dtype).view(batch, 1, 1, keys)
            bias = term if bias is None else bias + term
        return bias

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def _additive(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers that are added to scores: -inf where a boolean one is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    if not mask.is_floating_point():
        raise InputError(f"{name} must be of bool or of a floating type, got {mask.dtype}: convert it with .bool()")
    return mask.to(dtype)
