"""BinaryViT, a pyramid vision transformer of binary layers, and its three expanded designs (papers.md#binaryvit).

Tokens are (B, N, C), norms are BatchNorm per channel over batch and tokens. How the paper expands a transformer is not
published: the designs F1, F2 and F3 are ours, at equal cost (papers.md#es-transformer). In each of them the plain
network is tau = groups = 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError, check_choice, check_counts
from esbnn_core.layers import Tile
from esbnn_core.layers.widths import PLAIN, Expansion
from esbnn_core.models.parts import make_readout
from esbnn_core.models.registry import register_family
from esbnn_core.models.vit_blocks import BinaryAttention, FeedForward, PatchMerge, PoolBranches, to_tokens
from esbnn_core.units.token import normalise

Design = Literal["F1", "F2", "F3"]


@dataclass(frozen=True)
class Pyramid:
    """Shape of the network, a number a stage.

    Attributes:
        widths: nominal channels.
        depths: layers.
        ratios: hidden width of the feed-forward part over the nominal one.
        reductions: of keys and values, in each direction of the map.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 8, 4)
    ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 1, 1)


class PatchStem(nn.Module):
    """Real 4x4 convolution of stride 4 with bias, BN and positions: (B, in_channels, H, W) -> (B, H*W/16, copies*C).

    Args:
        in_channels: of the images.
        channels: nominal C.
        height: of the square token map.
        copies: of the maps, tiled before the BN as in every ES network (design F3).
    """

    def __init__(self, in_channels: int, channels: int, height: int, copies: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 4, 4)
        self.tile: nn.Module = Tile(copies) if copies > 1 else nn.Identity()
        self.norm = nn.BatchNorm2d(copies * channels)
        self.position = nn.Parameter(torch.empty(1, height**2, copies * channels))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.norm(self.tile(self.conv(x)))) + self.position


class ViTLayer(nn.Module):
    """Attention, then feed-forward beside four poolings, each on the normalised stream: (B, N, tau*g*C) -> the same."""

    def __init__(
        self, channels: int, height: int, ratio: int, reduction: int, expansion: Expansion, design: Design, name: str
    ) -> None:
        super().__init__()
        stream = expansion if design == "F3" else PLAIN
        wide = stream.wide * channels
        self.norm_before = nn.BatchNorm1d(wide)
        self.attention = BinaryAttention(channels, height, reduction, stream, f"{name}.attention")
        self.norm_after = nn.BatchNorm1d(wide)
        self.ffn = FeedForward(channels, ratio, expansion, design, f"{name}.ffn")
        self.pools = PoolBranches(wide, height)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(normalise(self.norm_before, x))
        h = normalise(self.norm_after, x)
        out: Tensor = x + self.ffn(h) + self.pools(h)
        return out


class BinaryViT(nn.Module):
    """(N, in_channels, image_size, image_size) float -> logits (N, num_classes).

    Args:
        pyramid: shape of the stages.
        expansion: plain or ES.
        num_classes: of the classifier.
        in_channels: of the stem.
        design: what expands, see FeedForward ("F1", "F2") and BinaryAttention ("F3" expands everything).
        real_merges: real patch merging (the variant with some real layers).
        image_size: side of the images, a multiple of 4 * 2^(stages - 1), 32 for four stages; the positions are learned
            for it.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an image size that does not fit; an
            unknown design.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        expansion: Expansion,
        num_classes: int = 1000,
        in_channels: int = 3,
        design: Design = "F1",
        real_merges: bool = False,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        check_choice("design", design, get_args(Design))
        steps = 4 * 2 ** (len(pyramid.widths) - 1)
        if image_size % steps:
            raise InputError(f"image_size must be a multiple of {steps}, got {image_size}")
        self.image_size = image_size
        stream = expansion if design == "F3" else PLAIN
        height = image_size // 4
        self.stem = PatchStem(in_channels, pyramid.widths[0], height, stream.wide)
        layers: list[nn.Module] = []
        merges: dict[str, nn.Module] = {}
        stages = zip(pyramid.widths, pyramid.depths, pyramid.ratios, pyramid.reductions, strict=True)
        for stage, (width, depth, ratio, reduction) in enumerate(stages):
            if stage > 0:
                before = pyramid.widths[stage - 1]
                merges[str(len(layers))] = PatchMerge(before, height, real_merges, stream, f"merges.{len(layers)}")
                height //= 2
            for _ in range(depth):
                name = f"layers.{len(layers)}"
                layers.append(ViTLayer(width, height, ratio, reduction, expansion, design, name))
        self.layers = nn.ModuleList(layers)
        # by the number of the layer that follows
        self.merges = nn.ModuleDict(merges)
        self.norm = nn.BatchNorm1d(stream.wide * pyramid.widths[-1])
        self.readout, features = make_readout(pyramid.widths[-1], stream)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                f"images of this BinaryViT must have the image_size {self.image_size} that its positions are for, got "
                f"{tuple(x.shape[-2:])} pixels: resize them, or build the network with another image_size"
            )
        x = self.stem(x)
        for i, layer in enumerate(self.layers):
            if str(i) in self.merges:
                x = self.merges[str(i)](x)
            x = layer(x)
        x = normalise(self.norm, x).mean(1)
        logits: Tensor = self.fc(self.readout(x))
        return logits


MICRO = Pyramid((64, 128, 256), (1, 2, 1), (4, 4, 4), (2, 1, 1))
"""Not a shape of the paper: for images of 32 pixels, it trains on a CPU in minutes."""


def _plain(pyramid: Pyramid, side: int, real_merges: bool = False) -> Callable[..., nn.Module]:
    """Builder of a plain network, where neither the design nor the patch merging is an option."""

    def build(expansion: Expansion, num_classes: int = 1000, in_channels: int = 3, image_size: int = side) -> nn.Module:
        return BinaryViT(pyramid, expansion, num_classes, in_channels, "F1", real_merges, image_size)

    return build


register_family("binaryvit", _plain(Pyramid(), 224), 224, rules=("plain",))
register_family("binaryvit_some_real", _plain(Pyramid(), 224, real_merges=True), 224, rules=("plain",))
register_family("binaryvit_micro", _plain(MICRO, 32), 32, rules=("plain",))
register_family("binaryvit", partial(BinaryViT, Pyramid()), 224, rules=("es",))
register_family("binaryvit_micro", partial(BinaryViT, MICRO, image_size=32), 32, rules=("es",))
