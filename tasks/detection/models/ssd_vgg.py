"""The six feature maps of SSD300, from the binary VGG-16 trunk (papers.md#bidet-ssd, #es-bidet)."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core import create_model
from esbnn_core.layers import SliceChannels
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.bidet_resnet import Variant, variant_style
from esbnn_core.models.vgg import STYLE
from esbnn_core.units.conv import BinaryUnit
from tasks.detection.mmdet.api import MODELS

SOURCES = (512, 1024, 512, 256, 256, 256)
"""Nominal channels of the sources: 38x38, 19x19, 10x10, 5x5, 3x3 and 1x1 at 300x300."""
EXTRAS = ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))
"""Each extra stage: width of its 1x1, then width, stride and padding of its 3x3."""


class L2Norm(nn.Module):
    """x / (its length over the channels + 1e-10) * weight, with one weight a channel, which starts at 20.

    Shape and dtype are those of x. mmdet's own layer always computes in float32.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        length = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
        return x / length * self.weight.to(x.dtype).view(1, -1, 1, 1)


@MODELS.register_module()
class ESBiDetVGG16(nn.Module):
    """(N, 3, H, W) -> six sources (N, C, h, w) of SOURCES' channels, the first one normalised.

    The trunk and the extras, binary units without a shortcut or an activation, have tau*groups times their nominal
    width. A source is the first C channels, so that L2Norm and heads are those of the plain network
    (papers.md#es-bidet). The first extra follows a ReLU, whose signs are 0 and 1 (BinaryUnit's `rectified`).

    Args:
        tau: of the expansion; 1 is the plain network, with groups = 1.
        groups: of the expansion.
        variant: as esbnn_core.models.vgg.BiDetVGG16.
        shortcuts: likewise.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown variant.
    """

    official_keys = "tasks.detection.official"

    def __init__(
        self,
        tau: int = 2,
        groups: int = 1,
        variant: Variant = "bidet",
        shortcuts: bool = True,
    ) -> None:
        super().__init__()
        expansion = Expansion(tau, groups)
        self.trunk = create_model("es_bidet_vgg16", tau=tau, groups=groups, variant=variant, shortcuts=shortcuts)
        common: dict[str, Any] = {"style": variant_style(variant, STYLE), "expansion": expansion}
        stages = OrderedDict[str, nn.Module]()
        before = SOURCES[1]
        for number, (narrow, wide, stride, padding) in enumerate(EXTRAS):
            name, rectified = f"extras.{number}", number == 0
            stages[str(number)] = nn.Sequential(
                BinaryUnit(before, narrow, 1, name=f"{name}.0", rectified=rectified, **common),
                BinaryUnit(narrow, wide, 3, stride, padding, name=f"{name}.1", **common),
            )
            before = wide
        self.extras = nn.Sequential(stages)
        self.read_outs = nn.ModuleList(SliceChannels(c) if expansion.wide > 1 else nn.Identity() for c in SOURCES)
        self.norm = L2Norm(SOURCES[0])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        source, x = self.trunk(x)
        sources = [source, x]
        for stage in self.extras:
            x = stage(x)
            sources.append(x)
        first, *rest = (read_out(y) for read_out, y in zip(self.read_outs, sources, strict=True))
        return self.norm(first), *rest


@MODELS.register_module()
class BiDetVGG16(ESBiDetVGG16):
    """The plain network: ESBiDetVGG16 with tau = groups = 1."""

    def __init__(self, variant: Variant = "bidet", shortcuts: bool = True) -> None:
        super().__init__(1, 1, variant, shortcuts)
