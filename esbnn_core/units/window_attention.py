"""WindowAttention: Swin's attention in shifted windows, whose linear layers are modules that may be binary."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers.products import AttentionProducts

FORBIDDEN = -100.0
"""Added to the scores of two tokens that a cyclic shift has put into one window, as in Swin."""


def effective_shift(height: int, width: int, window: Sequence[int], shift: Sequence[int]) -> tuple[int, int]:
    """The shift in each direction: 0 where one window covers the padded map."""
    return shift[0] if window[0] < height else 0, shift[1] if window[1] < width else 0


def split_windows(x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """(B, H, W, C) -> (B * windows, tokens, C), padded with zeros to whole windows and shifted cyclically."""
    _, height, width, _ = x.shape
    x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    down, right = effective_shift(height, width, window, shift)
    if down or right:
        x = torch.roll(x, shifts=(-down, -right), dims=(1, 2))
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # (B, rows, h, columns, w, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def join_windows(windows: Tensor, like: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """The inverse of split_windows for a map of the size of `like`."""
    batch, height, width, _ = like.shape
    rows, columns = -(-height // window[0]), -(-width // window[1])
    channels = windows.shape[-1]  # not -1, which an empty batch leaves open
    x = windows.view(batch, rows, columns, window[0], window[1], channels).transpose(2, 3)
    x = x.reshape(batch, rows * window[0], columns * window[1], channels)
    down, right = effective_shift(height, width, window, shift)
    if down or right:
        x = torch.roll(x, shifts=(down, right), dims=(1, 2))
    return x[:, :height, :width].contiguous()


def window_bias(position_bias: Tensor, like: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """position_bias (1, heads, tokens, tokens), and for a shifted map FORBIDDEN between regions: (B * windows, ...)."""
    batch, height, width, _ = like.shape
    down, right = effective_shift(height, width, window, shift)
    if not (down or right):
        return position_bias
    parts = []
    for length, size, moved in ((height, window[0], down), (width, window[1], right)):
        place = torch.arange(-(-length // size) * size, device=like.device)
        parts.append((place >= len(place) - size).long() + (place >= len(place) - moved).long())
    region = (3 * parts[0][:, None] + parts[1])[None, :, :, None]  # nine regions that did not touch
    tokens = split_windows(region, window, (0, 0))[..., 0]  # (windows, tokens)
    forbidden = (tokens[:, None, :] != tokens[:, :, None]).to(position_bias.dtype) * FORBIDDEN
    bias = position_bias + forbidden[:, None]
    return bias.expand(batch, *bias.shape).flatten(0, 1)


class WindowAttention(nn.Module):
    """Multi-head attention in shifted windows with a bias by relative position: (B, H, W, C) -> the same (Swin).

    It computes what torchvision's ShiftedWindowAttention computes, tensors of the same names, but calls `qkv` and
    `proj` as modules. The position bias is a table, or with cosine attention (Swin V2) a small network of coordinates.

    Args:
        qkv: linear layer C -> 3C, without a bias in cosine attention.
        proj: linear layer C -> C.
        products: of its heads; their `cosine` chooses the form of the position bias.
        window_size: height and width of a window.
        shift_size: of the windows.
        attention_dropout: of the probabilities.
        dropout: of the output.
    """

    relative_position_index: Tensor
    relative_coords_table: Tensor

    def __init__(
        self,
        qkv: nn.Module,
        proj: nn.Module,
        products: AttentionProducts,
        window_size: Sequence[int],
        shift_size: Sequence[int],
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.qkv, self.proj, self.products = qkv, proj, products
        self.window_size, self.shift_size = list(window_size), list(shift_size)
        self.attention_dropout, self.dropout = attention_dropout, dropout
        self.cosine = products.cosine
        heads, tokens = products.heads, math.prod(window_size)
        self.register_buffer("relative_position_index", torch.zeros(tokens**2, dtype=torch.long))
        table = [2 * size - 1 for size in window_size]
        self.qkv_bias: nn.Parameter | None = None
        """(3C,) of cosine attention, whose keys have none: their third is not read."""
        if self.cosine:
            self.register_buffer("relative_coords_table", torch.zeros(1, *table, 2))
            self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
            self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        else:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(math.prod(table), heads))

    def position_bias(self) -> Tensor:
        """(1, heads, tokens, tokens)."""
        if self.cosine:
            table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        else:
            table = self.relative_position_bias_table
        tokens = math.prod(self.window_size)
        bias: Tensor = table[self.relative_position_index].view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0)
        return 16 * torch.sigmoid(bias) if self.cosine else bias

    def forward(self, x: Tensor) -> Tensor:
        window, shift = self.window_size, self.shift_size
        q, k, v = self.qkv(split_windows(x, window, shift)).chunk(3, -1)
        scale: Tensor | None = None
        if self.cosine:
            if self.qkv_bias is not None:
                of_q, _, of_v = self.qkv_bias.chunk(3)
                q, v = q + of_q, v + of_v
            scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        bias = window_bias(self.position_bias(), x, window, shift)
        y, _ = self.products(q, k, v, scale, bias, self.attention_dropout, need_weights=True)
        y = F.dropout(self.proj(y), self.dropout, self.training)
        return join_windows(y, x, window, shift)

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, shift_size={self.shift_size}"
