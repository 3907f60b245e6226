"""SelfAttention: timm's attention with the products of this project."""

from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers.products import AttentionProducts


class SelfAttention(nn.Module):
    """(N, L, C) -> the same: what timm's Attention computes, but for its products; layers of the same names.

    Args:
        attention: a timm.layers.Attention, whose layers are taken.
        products: of its heads.
    """

    def __init__(self, attention: Any, products: AttentionProducts) -> None:
        super().__init__()
        self.num_heads = products.heads
        self.qkv: nn.Module = attention.qkv
        self.q_norm: nn.Module = attention.q_norm
        self.k_norm: nn.Module = attention.k_norm
        self.attn_drop: nn.Dropout = attention.attn_drop
        self.products = products
        self.norm: nn.Module = attention.norm
        self.gate: nn.Module | None = attention.gate
        self.proj: nn.Module = attention.proj
        self.proj_drop: nn.Module = attention.proj_drop
        self.training = attention.training

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's.

        Args:
            x: tokens.
            attn_mask: broadcasts to (N, heads, L, L): True where attention is allowed, or numbers for the scores.
            is_causal: each token attends to itself and those before; in place of a mask.

        Raises:
            InputError: both are given.
        """
        if attn_mask is not None and is_causal:
            raise InputError("attn_mask must be None where is_causal is True, got both: give one")
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self._normalise(self.q_norm, q), self._normalise(self.k_norm, k)
        if is_causal:
            attn_mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, -torch.inf)
        y, _ = self.products(q, k, v, None, attn_mask, self.attn_drop.p)
        y = self.norm(y)
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        out: Tensor = self.proj_drop(self.proj(y))
        return out

    def _normalise(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Each head alone."""
        return x if isinstance(norm, nn.Identity) else norm(x.unflatten(-1, (self.num_heads, -1))).flatten(-2)
