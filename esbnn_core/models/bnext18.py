"""BNext-18: the units of BNext in the layout of a ResNet-18, with ES and Rep (papers.md#bnext-18)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.models.bnext import BNextUnit
from esbnn_core.models.parts import Expansion, Stem, resnet_stem
from esbnn_core.models.registry import register_model

WIDTHS = (64, 128, 256, 512)
"""Nominal output width of every stage of two blocks."""


class BNext18(nn.Module):
    """(N, in_channels, H, W) float -> logits (N, num_classes).

    A block is an ELM unit, which strides and widens, then an FFN unit of stride 1, both 3x3. Their mix takes the
    residual, and their weights are signs from T < 1e-5 on. Where the source is silent this follows BNext: no activation
    in the stem, tiled before its BN, and a PReLU in front of the global pooling.

    Args:
        expansion: plain, ES (shrunk gates, sliced read-out) or Rep (wide gates, all channels).
        elm, info_recoupling: see BNextUnit; elm=False makes every unit an FFN.
        num_classes, in_channels: of the read-out and the stem. stem: "imagenet" or "cifar" (resnet_stem).

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown stem.
    """

    def __init__(
        self,
        expansion: Expansion,
        elm: bool,
        info_recoupling: bool,
        num_classes: int,
        in_channels: int,
        stem: Stem,
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
                        sign_below=1e-5,
                    )
                )
                before = width
            stages[f"layer{number}"] = nn.Sequential(*stage)
        self.stages = nn.Sequential(stages)
        self.readout, features = expansion.read_out(WIDTHS[-1])
        self.act = nn.PReLU(features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.readout(self.stages(self.stem(x))))
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


def _base(
    num_classes: int = 1000,
    in_channels: int = 3,
    elm: bool = True,
    info_recoupling: bool = True,
    stem: Stem = "imagenet",
) -> nn.Module:
    return BNext18(Expansion(), elm, info_recoupling, num_classes, in_channels, stem)


def _es(
    num_classes: int = 1000,
    in_channels: int = 3,
    tau: int = 2,
    groups: int = 1,
    copy_spread: float = 0.0,
    elm: bool = True,
    info_recoupling: bool = True,
    stem: Stem = "imagenet",
) -> nn.Module:
    return BNext18(Expansion(tau, groups, copy_spread), elm, info_recoupling, num_classes, in_channels, stem)


def _rep(
    num_classes: int = 1000,
    in_channels: int = 3,
    tau: int = 2,
    elm: bool = True,
    info_recoupling: bool = True,
    stem: Stem = "imagenet",
) -> nn.Module:
    return BNext18(Expansion(tau, rule="rep"), elm, info_recoupling, num_classes, in_channels, stem)


register_model("bnext18", _base, 224)
register_model("es_bnext18", _es, 224)
register_model("rep_bnext18", _rep, 224)
