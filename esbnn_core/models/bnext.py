"""BNext tiny, small, middle and large, and a micro one of ours: plain, ES and Rep.

papers.md#bnext, #bnext-temperature, #es-bnext

A unit is a binary convolution whose output is scaled by a squeeze-excite gate. The gate reads a learned mix of the
unit's input and output (info-recoupling). Weights are clamp(W/T) until the temperature T falls below 1e-7, and sign(W)
from then on.
"""

from collections import OrderedDict
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.layers import SqueezeExcite
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.parts import halving_pool, keep_layout, make_readout, real_shortcut, real_stem
from esbnn_core.models.registry import register_family
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.style import UnitStyle

SIZES = {
    "micro": (32, 32, *[64] * 2, *[128] * 2),
    "tiny": (32, 64, *[128] * 2, *[256] * 2, *[512] * 6, *[1024] * 2),
    "small": (48, 96, *[192] * 2, *[384] * 2, *[768] * 6, *[1536] * 2),
    "middle": (48, 96, *[192] * 4, *[384] * 4, *[768] * 8, *[1536] * 4),
    "large": (64, 128, *[256] * 4, *[512] * 4, *[1024] * 16, *[2048] * 4),
}
"""Nominal output widths of the stem and of every block.

micro is not a size of the paper. It is for images of 32 pixels, which its stem keeps at full size, and trains on a CPU
in minutes."""

BNEXT = UnitStyle(ste="clip", clip=1.5, weight_quantizer="temperature", latent_init="normal", act="none")


class BNextUnit(nn.Module):
    """One binary convolution of BNext: FFN_3x3, FFN_1x1, or ELM attention (3x3) (papers.md#bnext).

        u = PReLU(BN(tile(conv(sign(x + shift)))));  g = gate(s * pool(x) + (1 - s) * u) * u
        FFN:  BN(g) + pool(x)          ELM:  BN(g * r) + r  with r = pool(PReLU(x))

    (N, tau*g*C, H, W) -> (N, tau*g*O, H/stride, W/stride).

    Args:
        channels: nominal C.
        kernel: 3 or 1.
        stride: 1 or 2.
        elm: ELM attention in place of FFN.
        recoupling: gate, mix and second BN; without it the output is u + pool(x), or BN(u * r) + r for ELM.
        expansion: plain, ES or Rep.
        name: the unit's name, for errors alone.
        out_channels: nominal O, default C; another one makes pool AvgPool2 + real 1x1 + BN (BNext-18,
            papers.md#bnext-18).
        mixes_residual: the mix of an ELM reads r in place of pool(x) (BNext-18).
        style: of the binary unit.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        stride: int,
        elm: bool,
        recoupling: bool,
        expansion: Expansion,
        name: str,
        *,
        out_channels: int | None = None,
        mixes_residual: bool = False,
        style: UnitStyle = BNEXT,
    ) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        wide = expansion.wide * out
        self.kernel, self.recoupling, self.mixes_residual = kernel, recoupling, mixes_residual
        self.core = BinaryUnit(
            channels, out, kernel, stride, style=style, expansion=expansion, inner_act=True, name=name
        )
        # the original's files have this temperature of the sign, which changes neither value nor gradient
        self.register_buffer("activation_temperature", torch.ones(1))
        self.pool: nn.Module = halving_pool() if stride > 1 else nn.Identity()
        if out != channels:
            self.pool = real_shortcut(channels, out, expansion, f"{name}.pool")
        self.norm2: nn.Module = nn.BatchNorm2d(wide) if elm or recoupling else nn.Identity()
        self.act_in: nn.Module | None = nn.PReLU(expansion.wide * channels) if elm else None
        if not elm:
            # the original's files have these slopes, which its forward does not read (papers.md#es-quirk-2)
            self.unused_act = nn.Parameter(torch.full((wide,), 0.25), requires_grad=False)
        if recoupling:
            self.scale = nn.Parameter(torch.full((1, wide, 1, 1), 0.5))
            self.gate = SqueezeExcite(out, 8, expansion, f"{name}.gate")

    def forward(self, x: Tensor) -> Tensor:
        u = self.core(x)
        shortcut = self.pool(x if self.act_in is None else self.act_in(x))
        if self.recoupling:
            scale: Tensor = self.scale
            # in evaluation the original clamps the mix of its 1x1 units alone (papers.md#es-quirk-5)
            if self.training or self.kernel == 1:
                scale = scale.clamp(0, 1)
            mixed = shortcut if self.mixes_residual or self.act_in is None else self.pool(x)
            # the gate begins with a global mean, and the mean of a mix is the mix of the means
            mix = scale * mixed.mean((2, 3), keepdim=True) + (1 - scale) * u.mean((2, 3), keepdim=True)
            u = self.gate(mix) * u
        if self.act_in is not None:
            u = u * shortcut
        out: Tensor = keep_layout(self.norm2(u)) + shortcut
        return out

    def project_(self) -> None:
        """Put the mix back into [0, 1].

        The optimizer hook of esbnn_core.training.latent_clip calls it after every step.
        """
        if self.recoupling:
            self.scale.clamp_(0, 1)


class BNextBlock(nn.Module):
    """A 3x3 unit, then one 1x1 unit, or two whose outputs are concatenated if the width doubles."""

    def __init__(
        self, before: int, after: int, stride: int, elm: bool, recoupling: bool, expansion: Expansion, name: str
    ) -> None:
        super().__init__()
        self.attention = BNextUnit(before, 3, stride, elm, recoupling, expansion, f"{name}.attention")
        self.point = nn.ModuleList(
            BNextUnit(before, 1, 1, False, recoupling, expansion, f"{name}.point.{i}") for i in range(after // before)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return torch.cat([point(x) for point in self.point], dim=1)


class BNext(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    Args:
        widths: a row of SIZES.
        expansion: plain, ES (shrunk gates, sliced read-out) or Rep (wide gates, all channels read).
        num_classes: of the classifier.
        in_channels: of the stem.
        elm: ELM attention in every second block; False makes every 3x3 unit an FFN.
        info_recoupling: `recoupling` of BNextUnit.
        stem_stride: 2, or 1 for CIFAR images.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        expansion: Expansion,
        num_classes: int = 1000,
        in_channels: int = 3,
        elm: bool = True,
        info_recoupling: bool = True,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, stem_stride=stem_stride)
        conv = nn.Conv2d(in_channels, widths[0], 3, stem_stride, 1, bias=False)
        self.stem = nn.Sequential(real_stem(conv, expansion, tile_first=True))
        wide = expansion.wide * widths[0]
        # the original's files have it, its forward does not read it; it starts at its width (papers.md#es-quirk-2)
        unused = nn.Parameter(torch.full((wide,), float(wide)), requires_grad=False)
        self.stem.register_parameter("unused_prelu", unused)
        blocks = OrderedDict[str, nn.Module]()
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if after > before and i > 1 else 1
            attends = elm and i % 2 == 0
            blocks[str(i)] = BNextBlock(before, after, stride, attends, info_recoupling, expansion, f"blocks.{i}")
        self.blocks = nn.Sequential(blocks)
        self.readout, features = make_readout(widths[-1], expansion)
        self.act = nn.PReLU(features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.readout(keep_layout(self.blocks(self.stem(x)))))
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


for _size, _widths in SIZES.items():
    _side, _stride = (32, 1) if _size == "micro" else (224, 2)
    register_family(f"bnext_{_size}", partial(BNext, _widths, stem_stride=_stride), _side)
