"""ReActNet-A, the MobileNet-style ReActNet, with its ES and Rep versions (papers.md#repbnn, #reactnet-a)."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.layers import RPReLU
from esbnn_core.models.parts import Expansion, halving_pool, real_stem
from esbnn_core.models.registry import register_model
from esbnn_core.units.conv import BinaryUnit

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Nominal output width of the stem and of each block; a block strides where the width grows, the first one aside."""


class ReActBlock(nn.Module):
    """3x3 unit of the input's width, then one 1x1 unit, or two that share their shift where the width doubles.

    (N, wide*C, H, W) -> (N, wide*C', H/stride, W/stride) with wide = tau*groups.

    Args:
        before, after: nominal widths, equal or doubled. stride: 1 or 2. expansion: see Expansion. name: for errors.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: Expansion, name: str) -> None:
        super().__init__()
        e = expansion

        def unit(part: str, kernel: int, stride: int = 1, act: bool = True) -> BinaryUnit:
            return BinaryUnit(
                before,
                before,
                kernel,
                stride,
                tau=e.tau,
                groups=e.groups,
                copy_spread=e.copy_spread,
                act="rprelu" if act else "none",
                shortcut=nn.Identity() if stride == 1 else halving_pool(),
                name=f"{name}.{part}",
            )

        self.spatial = unit("spatial", 3, stride)
        doubles = after > before
        branches = [unit(f"point.{i}", 1, act=not doubles) for i in range(2 if doubles else 1)]
        for branch in branches[1:]:
            branch.conv.sign = branches[0].conv.sign  # one shift for both (move21 of the original)
        self.point = nn.ModuleList(branches)
        self.act: nn.Module = RPReLU(e.wide * after) if doubles else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        # all of the first branch, then all of the second: the copies of a map are not next to each other
        out: Tensor = self.act(torch.cat([point(x) for point in self.point], dim=1))
        return out


class ReActNetA(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    Args:
        expansion: plain, ES or Rep. num_classes, in_channels: of the read-out and the stem.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(self, expansion: Expansion, num_classes: int, in_channels: int) -> None:
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
        self.readout, features = expansion.read_out(WIDTHS[-1])
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        logits: Tensor = self.fc(self.readout(torch.flatten(self.pool(x), 1)))
        return logits


def _base(num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    return ReActNetA(Expansion(), num_classes, in_channels)


def _es(
    num_classes: int = 1000, in_channels: int = 3, tau: int = 2, groups: int = 1, copy_spread: float = 0.0
) -> nn.Module:
    return ReActNetA(Expansion(tau, groups, copy_spread), num_classes, in_channels)


def _rep(num_classes: int = 1000, in_channels: int = 3, tau: int = 2) -> nn.Module:
    return ReActNetA(Expansion(tau, rule="rep"), num_classes, in_channels)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {"reactnet_a": _base, "es_reactnet_a": _es, "rep_reactnet_a": _rep}
for _name, _build in _BUILDERS.items():
    register_model(_name, _build, 224)
