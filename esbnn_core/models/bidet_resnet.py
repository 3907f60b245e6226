"""The ResNet-18 trunk of BiDet's Faster R-CNN (SC), plain and ES.

papers.md#bidet-faster-rcnn, #bidet-conv, #es-bidet
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor, nn

from esbnn_core.errors import InputError, check_choice, check_counts
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.parts import make_readout, real_shortcut, resnet_stem
from esbnn_core.models.registry import register_family
from esbnn_core.models.resnet import R18, binary_stages
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.style import UnitStyle

BIDET = UnitStyle(shift=False, weight_quantizer="absmean_attached", latent_init="kaiming", pad_value=-1, act="none")
"""Bare sign (poly2), gradient through the scale, borders of -1 (papers.md#weight-quantizers, #borders).

The start of the latent weights is ours, the source gives none."""

Variant = Literal["bidet", "bireal", "xnor"]
"""How a trunk of BiDet binarises: as BiDet, as Bi-Real Net (papers.md#bireal), or as XNOR-Net (papers.md#xnor)."""


def variant_style(variant: Variant, bidet: UnitStyle = BIDET) -> UnitStyle:
    """The unit style of BiDet or of a baseline in its place.

    Args:
        variant: "bireal" has borders of 0 and a scale without gradient, "xnor" also the clip estimator for activations.
        bidet: style of "bidet", from which the others derive.

    Raises:
        InputError: an unknown variant.
    """
    check_choice("variant", variant, get_args(Variant))
    if variant == "bidet":
        return bidet
    style = replace(bidet, weight_quantizer="absmean", pad_value=0)
    return style if variant == "bireal" else replace(style, ste="clip")


class PlainBlock(nn.Module):
    """ResNet's basic block, two binary 3x3 units and one shortcut around both: BiDet without extra shortcuts.

    (N, tau*g*before, H, W) -> (N, tau*g*width, H/stride, W/stride).

    Args:
        before: nominal input width.
        width: nominal output width.
        stride: 1 or 2.
        style: of the units.
        e: plain or ES.
        name: the block's name, for errors alone.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(self, before: int, width: int, stride: int, style: UnitStyle, e: Expansion, name: str) -> None:
        super().__init__()
        self.units = nn.Sequential(
            BinaryUnit(before, width, stride=stride, style=style, expansion=e, name=f"{name}.units.0"),
            BinaryUnit(width, width, style=style, expansion=e, name=f"{name}.units.1"),
        )
        self.shortcut = real_shortcut(before, width, e, f"{name}.shortcut") if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.units(x) + self.shortcut(x)
        return out


def _plain_stages(style: UnitStyle, expansion: Expansion) -> nn.Sequential:
    """binary_stages of R18, made of PlainBlocks."""
    before = R18.widths[0]
    stages = OrderedDict[str, nn.Module]()
    for number, (count, width) in enumerate(zip(R18.units, R18.widths, strict=True), start=1):
        blocks = []
        for index in range(count // 2):
            stride = 2 if index == 0 and number > 1 else 1
            blocks.append(PlainBlock(before, width, stride, style, expansion, f"stages.layer{number}.{index}"))
            before = width
        stages[f"layer{number}"] = nn.Sequential(*blocks)
    return nn.Sequential(stages)


class BiDetResNet(nn.Module):
    """(N, in_channels, H, W) float -> map of stride 16 (N, tau*g*256, H/16, W/16).

    `layer4` is for the regions of interest that a detector cuts out of that map: (R, tau*g*256, 7, 7) ->
    (R, tau*g*512, 4, 4). With num_classes there is a classifier over it, for pre-training (classify).

    Args:
        expansion: plain or ES.
        num_classes: of the classifier, None for a trunk without one.
        in_channels: of the stem.
        variant: how it binarises.
        shortcuts: False for BiDet without the extra shortcuts: one around every two units.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown variant.
    """

    def __init__(
        self,
        expansion: Expansion,
        num_classes: int | None = None,
        in_channels: int = 3,
        variant: Variant = "bidet",
        shortcuts: bool = True,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels)
        self.stem = resnet_stem("imagenet", in_channels, R18.widths[0], expansion, tile_first=True)
        style = variant_style(variant)
        self.stages = binary_stages(R18, style, expansion) if shortcuts else _plain_stages(style, expansion)
        self.readout, features = make_readout(R18.widths[-1], expansion)
        self.fc: nn.Linear | None = None
        if num_classes is not None:
            check_counts(num_classes=num_classes)
            self.fc = nn.Linear(features, num_classes)

    @property
    def layer4(self) -> nn.Module:
        """The last stage, which forward leaves out: stride 2, 256 -> 512."""
        return self.stages.get_submodule("layer4")

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def features(self, x: Tensor) -> Tensor:
        """The map of stride 16 that a detector reads."""
        x = self.stem(x)
        for name in ("layer1", "layer2", "layer3"):
            x = self.stages.get_submodule(name)(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of whole images: features, layer4, global average, first 512 channels, linear.

        Raises:
            InputError: the trunk has no num_classes.
        """
        if self.fc is None:
            raise InputError("the trunk has no classifier: build it with num_classes")
        x = self.layer4(self.features(x)).mean((2, 3))
        logits: Tensor = self.fc(self.readout(x))
        return logits


class BiDetResNetClassifier(BiDetResNet):
    """The network in which the trunk is pre-trained: (N, in_channels, H, W) -> logits (N, num_classes), as classify.

    Its tensors have the trunk's names, and there are fc.weight and fc.bias. Arguments and errors are those of
    BiDetResNet, but num_classes is not None.
    """

    def __init__(
        self,
        expansion: Expansion,
        num_classes: int = 1000,
        in_channels: int = 3,
        variant: Variant = "bidet",
        shortcuts: bool = True,
    ) -> None:
        super().__init__(expansion, num_classes, in_channels, variant, shortcuts)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x)


# images have a shorter side of 600
register_family("bidet_resnet18", BiDetResNet, 600, rules=("plain", "es"), kind="trunk")
register_family("bidet_resnet18_classifier", BiDetResNetClassifier, 224, rules=("plain", "es"))
