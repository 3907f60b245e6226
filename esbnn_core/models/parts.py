"""What the networks share: real stems, real shortcuts, the read-out, plain or expanded, and the layout of gradients."""

from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_choice
from esbnn_core.layers import SliceChannels, Tile
from esbnn_core.layers.widths import Expansion, es_widths

Stem = Literal["imagenet", "cifar"]
"""First layers of a ResNet: 7x7 of stride 2 and a max-pool, or 3x3."""


def make_readout(channels: int, expansion: Expansion) -> tuple[nn.Module, int]:
    """What comes in front of the classifier, and how many features it leaves.

    Args:
        channels: nominal width of the last layer.
        expansion: rule "es" reads the first `channels` of the carried channels, "rep" all of them.
    """
    if expansion.rule == "rep":
        return nn.Identity(), expansion.wide * channels
    return (SliceChannels(channels) if expansion.wide > 1 else nn.Identity()), channels


def keep_layout(x: Tensor) -> Tensor:
    """Return x; the gradient of a channels_last x (N, C, H, W) becomes channels_last before it goes on.

    That of a global mean, or of a part of a concatenation, is another one, and goes on through every shortcut: there a
    norm's backward on the CPU takes five times as long as with two maps of one layout.
    """
    # torch.fx traces with no tensor, and needs none of this
    if isinstance(x, Tensor) and x.requires_grad and not torch.compiler.is_compiling():
        last = torch.channels_last
        if x.is_contiguous(memory_format=last) and not x.is_contiguous():
            x.register_hook(lambda grad: grad.contiguous(memory_format=last))
    return x


def halving_pool() -> nn.AvgPool2d:
    """2x2 average pooling of a shortcut beside a convolution of stride 2.

    ceil_mode matters for odd sizes alone: it keeps the size of the strided convolution.
    """
    return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)


def real_stem(conv: nn.Conv2d, e: Expansion, tile_first: bool) -> OrderedDict[str, nn.Module]:
    """A real first convolution at nominal cost with its BN and tile, by name.

    Args:
        conv: the plain network's.
        e: tau and groups; the maps are tiled tau*g times.
        tile_first: tile before the BN, or after it.
    """
    steps = OrderedDict[str, nn.Module](conv=conv)
    width = conv.out_channels
    if e.wide > 1 and tile_first:
        steps["tile"] = Tile(e.wide)
        steps["norm"] = nn.BatchNorm2d(e.wide * width)
        return steps
    steps["norm"] = nn.BatchNorm2d(width)
    if e.wide > 1:
        steps["tile"] = Tile(e.wide)
    return steps


def resnet_stem(
    stem: Stem, in_channels: int, width: int, e: Expansion, tile_first: bool, act: nn.Module | None = None
) -> nn.Sequential:
    """Stem of a ResNet: (N, in_channels, H, W) -> (N, tau*g*width, H/4, W/4), or H x W for "cifar".

    Args:
        stem: "imagenet" or "cifar".
        in_channels: of the images.
        width: nominal output width.
        e: tau and groups.
        tile_first: as real_stem.
        act: after conv, BN and tile, in front of the max-pool of "imagenet".

    Raises:
        InputError: an unknown stem.
    """
    check_choice("stem", stem, get_args(Stem))
    kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
    conv = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
    steps = real_stem(conv, e, tile_first)
    if act is not None:
        steps["act"] = act
    if stem == "imagenet":
        steps["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(steps)


def real_shortcut(c_in: int, c_out: int, e: Expansion, name: str, pooled: bool = True) -> nn.Sequential:
    """Shortcut of stride 2 whose width may change: (N, tau*g*c_in, H, W) -> (N, tau*g*c_out, H/2, W/2).

    Its real 1x1 expands and shrinks as the binary layers do, so that its cost stays (papers.md#es-elsewhere).

    Args:
        c_in: nominal input width.
        c_out: nominal output width.
        e: tau and groups.
        name: the shortcut's name, for errors alone.
        pooled: AvgPool2 + 1x1 + BN, or a strided 1x1 + BN.

    Raises:
        InputError: tau*groups does not divide c_out, naming the layer.
    """
    w = es_widths(c_in, c_out, e, layer=name)
    layers: list[nn.Module] = [halving_pool()] if pooled else []
    layers.append(nn.Conv2d(w.carried_in, w.filters, 1, 1 if pooled else 2, bias=False, groups=w.groups))
    if w.copies > 1:
        layers.append(Tile(w.copies))
    layers.append(nn.BatchNorm2d(w.carried_out))
    return nn.Sequential(*layers)
