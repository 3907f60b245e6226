"""The ResNet-18 trunk of BiDet's Faster R-CNN (SC), plain and expanded.

Source: papers.md#bidet-conv, #bidet-faster-rcnn, #es-bidet.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor, nn

from esbnn_core.errors import InputError, check_counts
from esbnn_core.models.parts import Expansion, real_shortcut, resnet_stem
from esbnn_core.models.registry import register_model
from esbnn_core.models.resnet import R18, Style, binary_stages

BIDET = Style(
    shift=False,
    act="none",
    weight_quantizer="absmean_attached",
    latent_init="kaiming",
    pad_value=-1,
)
"""Bare sign (poly2), gradient through the scale, borders of -1; the start is ours, none is given.

Source: papers.md#weight-quantizers, #borders.
"""

Variant = Literal["bidet", "bireal", "xnor"]
"""How a trunk of BiDet binarises: its own way, as Bi-Real Net, or as XNOR-Net.

Source: papers.md#weight-quantizers, #borders, #bireal, #xnor.
"""


def variant_style(variant: Variant, bidet: Style = BIDET) -> Style:
    """The style of a baseline: Bi-Real's is BiDet's with borders of 0 and a scale without a gradient, XNOR's has the
    plain clip estimator for activations beside that. Raises InputError for another name."""
    if variant not in get_args(Variant):
        raise InputError(f"variant={variant!r} was given, one of {', '.join(get_args(Variant))} was expected")
    if variant == "bidet":
        return bidet
    style = replace(bidet, weight_quantizer="absmean", pad_value=0)
    return style if variant == "bireal" else replace(style, ste="clip")


class PlainBlock(nn.Module):
    """ResNet's own basic block, two binary 3x3 units and one shortcut around both: BiDet without extra shortcuts.

    (N, tau*g*before, H, W) -> (N, tau*g*width, H/stride, W/stride). Raises InputError naming the layer.
    """

    def __init__(self, before: int, width: int, stride: int, style: Style, e: Expansion, name: str) -> None:
        super().__init__()
        self.units = nn.Sequential(
            style.unit(before, width, e, f"{name}.units.0", stride=stride, shortcut=None),
            style.unit(width, width, e, f"{name}.units.1", shortcut=None),
        )
        self.shortcut = real_shortcut(before, width, e, f"{name}.shortcut") if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.units(x) + self.shortcut(x)
        return out


def _plain_stages(style: Style, expansion: Expansion) -> nn.Sequential:
    """As binary_stages, of PlainBlocks."""
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
    (R, tau*g*512, 4, 4). With num_classes there is a read-out over it, for pre-training: see classify.

    Args:
        expansion: plain or ES. num_classes: of the read-out, None for a trunk without one. in_channels: of the stem.
        variant: how it binarises. shortcuts: False for BiDet without the extra shortcuts, one around every two units.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown variant.
    """

    def __init__(
        self,
        expansion: Expansion,
        num_classes: int | None,
        in_channels: int,
        variant: Variant = "bidet",
        shortcuts: bool = True,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels)
        self.stem = resnet_stem("imagenet", in_channels, R18.widths[0], expansion, tile_first=True)
        style = variant_style(variant)
        self.stages = binary_stages(R18, style, expansion) if shortcuts else _plain_stages(style, expansion)
        self.readout, features = expansion.read_out(R18.widths[-1])
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
        """The map of stride 16 that a detector stands on."""
        x = self.stem(x)
        for name in ("layer1", "layer2", "layer3"):
            x = self.stages.get_submodule(name)(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of whole images: features, layer4, global average, first 512 channels, linear.

        Raises:
            InputError: the trunk was built without num_classes.
        """
        if self.fc is None:
            raise InputError("the trunk has no read-out to classify with: build it with num_classes")
        x = self.layer4(self.features(x)).mean((2, 3))
        logits: Tensor = self.fc(self.readout(x))
        return logits


class BiDetResNetClassifier(BiDetResNet):
    """The network that the trunk is pre-trained as: (N, in_channels, H, W) -> logits (N, num_classes), as classify.

    Its tensors have the trunk's names, and fc.weight and fc.bias beside them.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x)


def _base(
    num_classes: int | None = None, in_channels: int = 3, variant: Variant = "bidet", shortcuts: bool = True
) -> nn.Module:
    return BiDetResNet(Expansion(), num_classes, in_channels, variant, shortcuts)


def _es(
    num_classes: int | None = None,
    in_channels: int = 3,
    tau: int = 2,
    groups: int = 1,
    copy_spread: float = 0.0,
    variant: Variant = "bidet",
    shortcuts: bool = True,
) -> nn.Module:
    return BiDetResNet(Expansion(tau, groups, copy_spread), num_classes, in_channels, variant, shortcuts)


def _classifier(
    num_classes: int = 1000, in_channels: int = 3, variant: Variant = "bidet", shortcuts: bool = True
) -> nn.Module:
    return BiDetResNetClassifier(Expansion(), num_classes, in_channels, variant, shortcuts)


def _es_classifier(
    num_classes: int = 1000,
    in_channels: int = 3,
    tau: int = 2,
    groups: int = 1,
    copy_spread: float = 0.0,
    variant: Variant = "bidet",
    shortcuts: bool = True,
) -> nn.Module:
    return BiDetResNetClassifier(Expansion(tau, groups, copy_spread), num_classes, in_channels, variant, shortcuts)


# images have a shorter side of 600
register_model("bidet_resnet18", _base, 600, kind="trunk")
register_model("es_bidet_resnet18", _es, 600, kind="trunk")
register_model("bidet_resnet18_classifier", _classifier, 224)
register_model("es_bidet_resnet18_classifier", _es_classifier, 224)
