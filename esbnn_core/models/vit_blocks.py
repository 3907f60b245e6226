"""Blocks of BinaryViT on tokens: attention, feed-forward and patch merging, plain and expanded.

papers.md#binaryvit, #es-transformer
"""

from collections import OrderedDict
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryMatmul, BinarySoftmax, LayerScale, RPReLU, RSign, Tile
from esbnn_core.layers.widths import Expansion, es_widths, tile
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.style import UnitStyle
from esbnn_core.units.token import TokenUnit, normalise

HEAD = 64
"""Channels of one attention head."""
MERGE = UnitStyle(latent_init="fan_in")


def to_map(x: Tensor, height: int) -> Tensor:
    """Tokens (B, H*W, C) -> map (B, C, H, W) of a given height."""
    # the width by name, not -1, which an empty batch leaves open
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, x.shape[1] // height)


def to_tokens(x: Tensor) -> Tensor:
    """Map (B, C, H, W) -> tokens (B, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


class BinaryAttention(nn.Module):
    """Attention whose queries, keys, values and probabilities are binary: (B, N, tau*g*C) -> the same.

    Keys and values come from the map average-pooled by `reduction`, through a binary linear unit
    (papers.md#binaryvit-attention).

    Args:
        channels: nominal C, a multiple of 64.
        height: of the token map.
        reduction: R, 1 for none.
        expansion: of the linear layers (design F3). Queries, keys and values are sliced to C in front of the products,
            so that these cost as much as in the plain network.
        name: the block's name, for errors alone.

    Raises:
        InputError: channels that are not a multiple of 64, or that tau*groups does not divide.
    """

    def __init__(self, channels: int, height: int, reduction: int, expansion: Expansion, name: str) -> None:
        super().__init__()
        self.channels, self.height, self.reduction = channels, height, reduction
        if channels % HEAD:
            raise InputError(f"channels of layer {name} must be a multiple of {HEAD} (one head), got {channels}")
        w = es_widths(channels, channels, expansion, layer=name)

        def make_unit() -> TokenUnit:
            return TokenUnit(w.carried_in, w.filters, w.copies, w.groups, expansion.copy_spread, w.copies)

        self.reduce = make_unit() if reduction > 1 else None
        self.query, self.key, self.value = make_unit(), make_unit(), make_unit()
        self.sign_q, self.sign_k, self.sign_v = (RSign(channels, channel_dim=-1) for _ in range(3))
        self.scores, self.softmax, self.mix = BinaryMatmul(), BinarySoftmax(), BinaryMatmul()
        self.tile: nn.Module = Tile(expansion.wide, dim=-1) if expansion.wide > 1 else nn.Identity()
        self.norm = nn.BatchNorm1d(w.carried_out)
        self.act = RPReLU(w.carried_out, channel_dim=-1)
        self.project = make_unit()
        self.scale = LayerScale(w.carried_out, 0.1)

    def _heads(self, x: Tensor, sign: RSign) -> Tensor:
        """(B, N, tau*g*C) -> signs (B, heads, N, 64) of the first C channels."""
        signs: Tensor = sign(x[..., : self.channels])
        return signs.view(*signs.shape[:2], self.channels // HEAD, HEAD).transpose(1, 2)

    def _upsample(self, x: Tensor) -> Tensor:
        """Reduced tokens at the size of the full map, by nearest neighbours."""
        if self.reduce is None:
            return x
        small = to_map(x, self.height // self.reduction)
        return to_tokens(F.interpolate(small, scale_factor=float(self.reduction), mode="nearest"))

    def forward(self, h: Tensor) -> Tensor:
        reduced = h
        if self.reduce is not None:
            pooled = to_tokens(F.avg_pool2d(to_map(h, self.height), self.reduction))
            reduced = self.reduce(pooled, pooled)
        q, k, v = self.query(h, h), self.key(reduced, reduced), self.value(reduced, reduced)
        queries, keys, values = self._heads(q, self.sign_q), self._heads(k, self.sign_k), self._heads(v, self.sign_v)
        p = self.softmax(self.scores(queries, keys.transpose(-2, -1)) / HEAD**0.5)  # (B, heads, N, N/R^2)
        context = self.mix(p, values).transpose(1, 2).flatten(2)
        if not self.training:  # p is {0, 1} in evaluation, so that the sums are exact
            context = context * self.softmax.threshold
        context = normalise(self.norm, self.tile(context))
        o = self.act(context + q + self._upsample(k) + self._upsample(v))
        out: Tensor = self.scale(self.project(o, o))
        return out


class FeedForward(nn.Module):
    """Two binary linear units with a hidden width of ratio*C: (B, N, C) -> the same, or (B, N, tau*g*C) in design F3.

    The skip of the first unit tiles its input, that of the second averages adjacent channels, as in the original
    (papers.md#binaryvit-ffn, #es-transformer).

    Args:
        channels: nominal C.
        ratio: hidden width over C.
        expansion: plain or ES.
        design: "F1" widens the hidden features, which the second unit reads. "F2" tiles the input too, so that both
            units read more features. In "F3" the residual stream is wide already.
        name: the block's name, for errors alone.

    Raises:
        InputError: a width that tau*groups does not divide.
    """

    def __init__(self, channels: int, ratio: int, expansion: Expansion, design: str, name: str) -> None:
        super().__init__()
        e, hidden = expansion, ratio * channels
        wide = e.wide if design == "F3" else 1
        first = es_widths(channels, hidden, e, layer=f"{name}.expand")
        second = es_widths(hidden, channels, e, layer=f"{name}.shrink")
        self.entry: nn.Module = Tile(e.wide, dim=-1) if design == "F2" and e.wide > 1 else nn.Identity()
        if design == "F1":
            self.expand = TokenUnit(channels, hidden, e.wide)
        else:
            in_copies = e.wide if design == "F2" else first.copies
            self.expand = TokenUnit(
                first.carried_in, first.filters, first.copies, first.groups, e.copy_spread, in_copies
            )
        hidden_copies = e.wide if design == "F1" else first.copies
        out_copies = second.copies if design == "F3" else e.tau
        self.shrink = TokenUnit(
            second.carried_in, second.filters, out_copies, second.groups, e.copy_spread, hidden_copies
        )
        self.scale = LayerScale(wide * channels, 0.1)
        self.skip_copies = second.carried_in // (wide * channels)

    def forward(self, h: Tensor) -> Tensor:
        hidden = self.expand(self.entry(h), tile(h, self.skip_copies, -1))
        pooled = hidden.unflatten(-1, (-1, self.skip_copies)).mean(-1)
        out: Tensor = self.scale(self.shrink(hidden, pooled))
        return out


class PoolBranches(nn.Module):
    """Sum of four scaled average poolings of the map, 3x1, 1x3, 5x1 and 1x5 (papers.md#binaryvit-ffn).

    The scales start at zero.

    Args:
        channels: of the tokens.
        height: of the token map.
    """

    KERNELS: ClassVar = {"h3": (3, 1), "w3": (1, 3), "h5": (5, 1), "w5": (1, 5)}

    def __init__(self, channels: int, height: int) -> None:
        super().__init__()
        self.height = height
        self.scales = nn.ModuleDict({name: LayerScale(channels, 0.0) for name in self.KERNELS})

    def forward(self, h: Tensor) -> Tensor:
        x = to_map(h, self.height)
        branches = [
            self.scales[name](to_tokens(F.avg_pool2d(x, kernel, 1, (kernel[0] // 2, kernel[1] // 2))))
            for name, kernel in self.KERNELS.items()
        ]
        return torch.stack(branches).sum(0)


class PatchMerge(nn.Module):
    """Halves the map and doubles the width: (B, N, tau*g*C) -> (B, N/4, tau*g*2C), with new positions.

    Args:
        channels: nominal C.
        height: of the input's token map.
        real: a real 2x2 convolution without shortcut and activation, in place of the binary unit.
        expansion: of that convolution (design F3).
        name: the block's name, for errors alone.

    Raises:
        InputError: a width that tau*groups does not divide.
    """

    def __init__(self, channels: int, height: int, real: bool, expansion: Expansion, name: str) -> None:
        super().__init__()
        self.height = height
        w = es_widths(channels, 2 * channels, expansion, layer=name)
        self.norm_in = nn.BatchNorm2d(w.carried_in)
        if real:
            steps = OrderedDict[str, nn.Module]()
            steps["conv"] = nn.Conv2d(w.carried_in, w.filters, 2, 2, bias=False, groups=w.groups)
            steps["tile"] = Tile(w.copies) if w.copies > 1 else nn.Identity()
            steps["norm"] = nn.BatchNorm2d(w.carried_out)
            self.merge: nn.Module = nn.Sequential(steps)
        else:
            self.merge = BinaryUnit(
                *(channels, 2 * channels, 2, 2, 0),
                style=MERGE,
                expansion=expansion,
                shortcut=nn.Sequential(nn.AvgPool2d(2), Tile(2)),
                name=name,
            )
        self.position = nn.Parameter(torch.empty(1, (height // 2) ** 2, w.carried_out))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.merge(self.norm_in(to_map(x, self.height)))) + self.position
