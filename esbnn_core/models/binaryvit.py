"""BinaryViT, a pyramid vision transformer of binary layers, and its three expanded designs (papers.md#binaryvit).

Tokens are (B, N, C), norms are BatchNorm per channel over batch and tokens. The paper's own way of expanding a
transformer is not published; the designs F1, F2 and F3 are cost-neutral answers of ours (papers.md#es-transformer), and
for each of them tau = groups = 1 is the plain network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError, check_counts
from esbnn_core.layers import Tile
from esbnn_core.models.parts import Expansion
from esbnn_core.models.registry import register_model
from esbnn_core.models.vit_blocks import BinaryAttention, FeedForward, PatchMerge, PoolBranches, to_tokens
from esbnn_core.units.token import normalise

Design = Literal["F1", "F2", "F3"]


@dataclass(frozen=True)
class Pyramid:
    """Shape of the stages: width, layers, hidden ratio of the feed-forward and reduction of keys and values of each."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (3, 4, 8, 4)
    ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 1, 1)


class PatchStem(nn.Module):
    """Real 4x4 convolution of stride 4 with bias, BN and positions: (B, in_channels, H, W) -> (B, H*W/16, wide*C).

    Expanded (design F3) its maps are tiled before the BN, as in every ES network.
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
    """Attention, then feed-forward beside four poolings, each on the normalised stream: (B, N, wide*C) -> the same."""

    def __init__(
        self, channels: int, height: int, ratio: int, reduction: int, expansion: Expansion, design: Design, name: str
    ) -> None:
        super().__init__()
        stream = expansion if design == "F3" else Expansion()
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
        pyramid: see Pyramid. expansion, design: tau, groups and where they apply; see FeedForward and BinaryAttention.
        real_merges: real patch merging (the some-real-layers variant). num_classes, in_channels: of the read-out and
            the stem. image_size: side of the images, a multiple of 4 * 2^(stages - 1), 32 for four
            stages; the positions are learned for it.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an image size that does not fit.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        expansion: Expansion,
        design: Design,
        real_merges: bool,
        num_classes: int,
        in_channels: int,
        image_size: int,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        if design not in get_args(Design):
            raise InputError(f"design {design!r} is not known, one of {', '.join(get_args(Design))} was expected")
        steps = 4 * 2 ** (len(pyramid.widths) - 1)
        if image_size % steps:
            raise InputError(f"image_size={image_size} was given, a multiple of {steps} was expected")
        self.image_size = image_size
        stream = expansion if design == "F3" else Expansion()
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
        # each by the number of the layer that it stands in front of
        self.merges = nn.ModuleDict(merges)
        self.norm = nn.BatchNorm1d(stream.wide * pyramid.widths[-1])
        self.readout, features = stream.read_out(pyramid.widths[-1])
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                f"images of {tuple(x.shape[-2:])} pixels were given to a BinaryViT with positions for image_size="
                f"{self.image_size}: resize them, or build the network with that image_size"
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
"""No shape of the paper: for images of 32 pixels, it trains on a CPU in minutes."""


def _plain(pyramid: Pyramid, side: int, real_merges: bool) -> Callable[..., nn.Module]:
    def build(num_classes: int = 1000, in_channels: int = 3, image_size: int = side) -> nn.Module:
        return BinaryViT(pyramid, Expansion(), "F1", real_merges, num_classes, in_channels, image_size)

    return build


def _expanded(pyramid: Pyramid, side: int) -> Callable[..., nn.Module]:
    def build(
        num_classes: int = 1000,
        in_channels: int = 3,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        design: Design = "F1",
        real_merges: bool = False,
        image_size: int = side,
    ) -> nn.Module:
        expansion = Expansion(tau, groups, copy_spread)
        return BinaryViT(pyramid, expansion, design, real_merges, num_classes, in_channels, image_size)

    return build


register_model("binaryvit", _plain(Pyramid(), 224, False), 224)
register_model("binaryvit_some_real", _plain(Pyramid(), 224, True), 224)
register_model("es_binaryvit", _expanded(Pyramid(), 224), 224)
register_model("binaryvit_micro", _plain(MICRO, 32, False), 32)
register_model("es_binaryvit_micro", _expanded(MICRO, 32), 32)
