"""Blocks of BI-DiffSR's UNet: residual block, attention over pixels, CP-Down, CP-Up, CS-Fusion, time code.

Source: papers.md#bi-diffsr-blocks.

All work at the carried width tau*g*C of ES, in `Recipe.blocks` blocks of channels; with tau = g = 1 there is one block
and they are the paper's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers.widths import tile
from tasks.super_resolution.conv_variants import Moment, Recipe, taken, woven


class TimeCode(nn.Module):
    """Timesteps (N,) -> (N, width): sines then cosines of t * 10^(-4k/half), k = 0 .. half-1.

    Source: papers.md#bi-diffsr-blocks.

    Computed in float32 at least, in the dtype asked for.
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
    """softmax(q k / sqrt(C)) v over all pixels, one head; (N, C, H, W) each. A module so that costs see it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # contiguous: torch multiplies rows with other strides in one matrix of (H*W)^2 numbers, 17 GB at 256x256
        rows = (t.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for t in (q, k, v))  # (N, 1, H*W, C)
        out: Tensor = F.scaled_dot_product_attention(*rows)
        return out.squeeze(1).transpose(1, 2).reshape(q.shape)


class Attention(nn.Module):
    """x + out(attention(qkv(norm(x)))), real-valued, in the middle of the UNet.

    Of the copies of an expanded network the first alone is read, and all get the result: parameters and operations are
    the plain network's.

    Args:
        channels: nominal C. norm_groups: of the GroupNorm over C. copies: tau*g.
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
    """conv1(swish(norm1(x))) + time, then x + conv2(dropout(swish(norm2(.)))), at one width throughout.

    Source: papers.md#bi-diffsr-blocks.

    A BI-Conv has its own identity inside, around the map behind the norm.

    Args:
        channels: nominal C. recipe: of the two 3x3 convolutions. embedding: E of Moment. norm_groups: for C channels;
            a norm over copies has as many times more, so that the size of a group stays. attention: at the end.
    """

    def __init__(
        self,
        channels: int,
        recipe: Recipe,
        embedding: int,
        norm_groups: int,
        dropout: float = 0.0,
        attention: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.copies = recipe.wide
        norm = (self.copies * norm_groups, self.copies * channels)
        self.time = nn.Linear(embedding, channels)
        self.norm1, self.conv1 = nn.GroupNorm(*norm), recipe.conv(channels, 3, f"{name}.conv1")
        self.norm2, self.conv2 = nn.GroupNorm(*norm), recipe.conv(channels, 3, f"{name}.conv2")
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(channels, norm_groups, self.copies) if attention else None

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), moment.group)
        # one linear layer for all copies: its cost does not grow with them
        h = h + tile(self.time(F.silu(moment.embedding)), self.copies)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))), moment.group)
        x = h + x
        return x if self.attention is None else self.attention(x)


class CPDown(nn.Module):
    """(N, C, H, W) -> (N, 2C, H/2, W/2): a convolution on each half of the channels, their sum unshuffled by pixels.

    Every convolution has as many channels out as in, which a binary one needs for its identity.
    """

    def __init__(self, channels: int, recipe: Recipe, name: str = "") -> None:
        super().__init__()
        self.blocks = recipe.blocks
        self.first = recipe.conv(channels // 2, 3, f"{name}.first")
        self.second = recipe.conv(channels // 2, 3, f"{name}.second")

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        half = x.shape[1] // self.blocks // 2
        one, other = (woven(taken(x, self.blocks, side)) for side in (slice(half), slice(half, None)))
        y = self.first(one, moment.group) + self.second(other, moment.group)
        return F.pixel_unshuffle(y, 2)  # four channels of each, side by side: blocks stay blocks


class CPUp(nn.Module):
    """(N, C, H, W) -> (N, C/2, 2H, 2W): two convolutions on all channels, side by side, shuffled by pixels."""

    def __init__(self, channels: int, recipe: Recipe, name: str = "") -> None:
        super().__init__()
        self.blocks = recipe.blocks
        self.first = recipe.conv(channels, 3, f"{name}.first")
        self.second = recipe.conv(channels, 3, f"{name}.second")

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        whole = slice(None)
        maps = (taken(conv(x, moment.group), self.blocks, whole) for conv in (self.first, self.second))
        return F.pixel_shuffle(woven(*maps), 2)


class CSFusion(nn.Module):
    """u and skip v (N, C, H, W) -> (N, C, H, W): a 1x1 convolution on u's odd and v's even channels, one on the others.

    Both convolutions see both sources, so that neither meets the value range of one alone.

    Args:
        channels: nominal C. recipe: of the convolutions. carried: of these channels of u and v are read, the first.
    """

    def __init__(self, channels: int, recipe: Recipe, name: str = "") -> None:
        super().__init__()
        self.blocks, self.carried = recipe.blocks, recipe.wide * channels
        self.odd = recipe.conv(channels, 1, f"{name}.odd")
        self.even = recipe.conv(channels, 1, f"{name}.even")

    def forward(self, x: Tensor, skip: Tensor, moment: Moment) -> Tensor:
        u, v = x[:, : self.carried], skip[:, : self.carried]
        even, odd = slice(0, None, 2), slice(1, None, 2)
        y: Tensor = self.odd(woven(taken(u, self.blocks, odd), taken(v, self.blocks, even)), moment.group)
        return y + self.even(woven(taken(u, self.blocks, even), taken(v, self.blocks, odd)), moment.group)
