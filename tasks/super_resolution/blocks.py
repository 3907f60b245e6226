"""Blocks of BI-DiffSR's UNet: residual block, attention over pixels, CP-Down, CP-Up, CS-Fusion, time code.

All have the carried width tau*g*C of ES, in `ConvStyle.blocks` blocks of channels. With tau = g = 1 there is one block
and they are those of the paper (papers.md#bi-diffsr-blocks).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers.widths import tile
from tasks.super_resolution.conv_variants import ConvStyle, Moment, interleave, select_channels


class TimeCode(nn.Module):
    """Timesteps (N,) -> (N, width): sines then cosines of t * 10^(-4k/half), k = 0 .. half-1.

    Computed in float32 at least and returned in the dtype asked for (papers.md#bi-diffsr-blocks).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.width // 2
        work = torch.promote_types(dtype, torch.float32)
        k = torch.arange(half, dtype=work, device=timestep.device)
        angles = timestep.to(work)[:, None] * torch.exp(k * (-math.log(1e4) / half))
        return torch.cat([angles.sin(), angles.cos()], 1).to(dtype)


class PixelAttention(nn.Module):
    """softmax(q k / sqrt(C)) v over all pixels, one head; (N, C, H, W) each. A module, so that hooks can count it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # contiguous: with other strides torch forms a matrix of (H*W)^2 numbers, 17 GB at 256x256
        pixels = (t.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for t in (q, k, v))  # (N, 1, H*W, C)
        out: Tensor = F.scaled_dot_product_attention(*pixels)
        return out.squeeze(1).transpose(1, 2).reshape(q.shape)


class Attention(nn.Module):
    """x + out(attention(qkv(norm(x)))), real-valued, in the middle of the UNet.

    In an expanded network only the first copy is read, and the result is added to all. So parameters and operations are
    those of the plain network.

    Args:
        channels: nominal C.
        norm_groups: of the GroupNorm over C.
        copies: tau*g.
    """

    def __init__(self, channels: int, norm_groups: int, copies: int) -> None:
        super().__init__()
        self.channels, self.copies = channels, copies
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.product = PixelAttention()
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x[:, : self.channels])).chunk(3, 1)
        return x + tile(self.out(self.product(q, k, v)), self.copies)


class ResidualBlock(nn.Module):
    """conv1(swish(norm1(x))) + time, then x + conv2(dropout(swish(norm2(.)))), all of one width.

    A BI-Conv contains an identity around the map after the norm (papers.md#bi-diffsr-blocks).

    Args:
        channels: nominal C.
        style: of the two 3x3 convolutions.
        embedding: E of Moment.
        norm_groups: for C channels; a norm over copies has tau*g times more groups of the same size.
        dropout: before the second convolution.
        attention: whether the block ends with attention.
        name: for errors.
    """

    def __init__(
        self,
        channels: int,
        style: ConvStyle,
        embedding: int,
        norm_groups: int,
        dropout: float = 0.0,
        attention: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.copies = style.wide
        norm = (self.copies * norm_groups, self.copies * channels)
        self.time = nn.Linear(embedding, channels)
        self.norm1, self.conv1 = nn.GroupNorm(*norm), style.conv(channels, 3, f"{name}.conv1")
        self.norm2, self.conv2 = nn.GroupNorm(*norm), style.conv(channels, 3, f"{name}.conv2")
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(channels, norm_groups, self.copies) if attention else None

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), moment.group)
        # one linear layer for all copies, so that its cost does not grow with them
        h = h + tile(self.time(F.silu(moment.embedding)), self.copies)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))), moment.group)
        x = h + x
        return x if self.attention is None else self.attention(x)


class CPDown(nn.Module):
    """(N, C, H, W) -> (N, 2C, H/2, W/2): a convolution on each half of the channels, then pixel unshuffle of their sum.

    Every convolution has equal channels in and out, as the identity of a binary one needs.
    """

    def __init__(self, channels: int, style: ConvStyle, name: str = "") -> None:
        super().__init__()
        self.blocks = style.blocks
        self.first = style.conv(channels // 2, 3, f"{name}.first")
        self.second = style.conv(channels // 2, 3, f"{name}.second")

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        half = x.shape[1] // self.blocks // 2
        one, other = (interleave(select_channels(x, self.blocks, part)) for part in (slice(half), slice(half, None)))
        y = self.first(one, moment.group) + self.second(other, moment.group)
        return F.pixel_unshuffle(y, 2)  # four channels of each, side by side, so blocks stay blocks


class CPUp(nn.Module):
    """(N, C, H, W) -> (N, C/2, 2H, 2W): two convolutions on all channels, side by side, then pixel shuffle."""

    def __init__(self, channels: int, style: ConvStyle, name: str = "") -> None:
        super().__init__()
        self.blocks = style.blocks
        self.first = style.conv(channels, 3, f"{name}.first")
        self.second = style.conv(channels, 3, f"{name}.second")

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        whole = slice(None)
        maps = (select_channels(conv(x, moment.group), self.blocks, whole) for conv in (self.first, self.second))
        return F.pixel_shuffle(interleave(*maps), 2)


class CSFusion(nn.Module):
    """u and skip v (N, C, H, W) -> (N, C, H, W): a 1x1 convolution on u's odd and v's even channels, one on the others.

    Both convolutions read both sources, so that neither sees the value range of only one.

    Args:
        channels: nominal C; of u and v the first tau*g*C channels are read.
        style: of the convolutions.
        name: for errors.
    """

    def __init__(self, channels: int, style: ConvStyle, name: str = "") -> None:
        super().__init__()
        self.blocks, self.carried = style.blocks, style.wide * channels
        self.odd = style.conv(channels, 1, f"{name}.odd")
        self.even = style.conv(channels, 1, f"{name}.even")

    def forward(self, x: Tensor, skip: Tensor, moment: Moment) -> Tensor:
        u, v = x[:, : self.carried], skip[:, : self.carried]
        even, odd = slice(0, None, 2), slice(1, None, 2)
        u_odd, u_even = (select_channels(u, self.blocks, part) for part in (odd, even))
        v_odd, v_even = (select_channels(v, self.blocks, part) for part in (odd, even))
        y: Tensor = self.odd(interleave(u_odd, v_even), moment.group)
        return y + self.even(interleave(u_even, v_odd), moment.group)
