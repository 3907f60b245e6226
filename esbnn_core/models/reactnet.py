"""ReActNet-A, the MobileNet-style ReActNet, plain, ES and Rep (papers.md#reactnet-a, #repbnn)."""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.layers import RPReLU
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.parts import halving_pool, make_readout, real_stem
from esbnn_core.models.registry import register_family
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.style import UnitStyle

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Nominal output width of the stem and of each block; a block that widens has stride 2, but the first."""
WITH_ACT, WITHOUT_ACT = UnitStyle(), UnitStyle(act="none")


class ReActBlock(nn.Module):
    """A 3x3 unit of the input's width, then one 1x1 unit, or two that share their shift if the width doubles.

    (N, tau*g*C, H, W) -> (N, tau*g*C', H/stride, W/stride).

    Args:
        before: nominal input width.
        after: nominal output width, `before` or twice as much.
        stride: 1 or 2.
        expansion: plain, ES or Rep.
        name: the block's name, for errors alone.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: Expansion, name: str) -> None:
        super().__init__()

        def make_unit(part: str, kernel: int, stride: int = 1, style: UnitStyle = WITH_ACT) -> BinaryUnit:
            shortcut = nn.Identity() if stride == 1 else halving_pool()
            return BinaryUnit(
                *(before, before, kernel, stride),
                style=style,
                expansion=expansion,
                shortcut=shortcut,
                name=f"{name}.{part}",
            )

        self.spatial = make_unit("spatial", 3, stride)
        if after > before:
            branches = [make_unit(f"point.{i}", 1, style=WITHOUT_ACT) for i in range(2)]
            branches[1].conv.sign = branches[0].conv.sign  # one shift for both (move21 of the original)
            self.point = nn.ModuleList(branches)
            self.act: nn.Module = RPReLU(expansion.wide * after)
        else:
            self.point = nn.ModuleList([make_unit("point.0", 1)])
            self.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        # all channels of the first branch, then all of the second: the copies of a map are not adjacent
        out: Tensor = self.act(torch.cat([point(x) for point in self.point], dim=1))
        return out


class ReActNetA(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    Args:
        expansion: plain, ES or Rep.
        num_classes: of the classifier.
        in_channels: of the stem.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(self, expansion: Expansion, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        conv = nn.Conv2d(in_channels, WIDTHS[0], 3, 2, 1, bias=False)
        self.stem = nn.Sequential(real_stem(conv, expansion, tile_first=expansion.rule == "es"))
        blocks = OrderedDict[str, nn.Module]()
        for i, (before, after) in enumerate(pairwise(WIDTHS), start=1):
            stride = 2 if after > before and i > 1 else 1
            blocks[str(i)] = ReActBlock(before, after, stride, expansion, f"blocks.{i}")
        self.blocks = nn.Sequential(blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.readout, features = make_readout(WIDTHS[-1], expansion)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        logits: Tensor = self.fc(self.readout(torch.flatten(self.pool(x), 1)))
        return logits


register_family("reactnet_a", ReActNetA, 224)
