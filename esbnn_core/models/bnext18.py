"""BNext-18: the units of BNext in the layout of a ResNet-18, plain, ES and Rep (papers.md#bnext-18)."""

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.bnext import BNEXT, BNextUnit
from esbnn_core.models.parts import Stem, keep_layout, make_readout, resnet_stem
from esbnn_core.models.registry import register_family

WIDTHS = (64, 128, 256, 512)
"""Nominal output width of every stage of two blocks."""
STYLE = replace(BNEXT, weight_quantizer=partial(Temperature, 1e-5))


class BNext18(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    A block is an ELM unit, which strides and widens, then an FFN unit of stride 1, both 3x3. Their mix reads the
    residual, and their weights are signs for T < 1e-5. What the source does not say follows BNext: no activation in the
    stem, which tiles before its BN, and a PReLU in front of the global pooling.

    Args:
        expansion: plain, ES (shrunk gates, sliced read-out) or Rep (wide gates, all channels read).
        num_classes: of the classifier.
        in_channels: of the stem.
        elm: False makes every unit an FFN.
        info_recoupling: `recoupling` of BNextUnit.
        stem: "imagenet" or "cifar" (resnet_stem).

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown stem.
    """

    def __init__(
        self,
        expansion: Expansion,
        num_classes: int = 1000,
        in_channels: int = 3,
        elm: bool = True,
        info_recoupling: bool = True,
        stem: Stem = "imagenet",
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        self.stem = resnet_stem(stem, in_channels, WIDTHS[0], expansion, tile_first=True)
        before = WIDTHS[0]
        stages = OrderedDict[str, nn.Module]()
        for number, width in enumerate(WIDTHS, start=1):
            stage = []
            for index in range(4):
                stage.append(
                    BNextUnit(
                        before,
                        3,
                        stride=2 if width > before else 1,
                        elm=elm and index % 2 == 0,
                        recoupling=info_recoupling,
                        expansion=expansion,
                        name=f"stages.layer{number}.{index}",
                        out_channels=width,
                        mixes_residual=True,
                        style=STYLE,
                    )
                )
                before = width
            stages[f"layer{number}"] = nn.Sequential(*stage)
        self.stages = nn.Sequential(stages)
        self.readout, features = make_readout(WIDTHS[-1], expansion)
        self.act = nn.PReLU(features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.readout(keep_layout(self.stages(self.stem(x)))))
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


register_family("bnext18", BNext18, 224)
