"""The VGG-16 trunk of BiDet's SSD300 (SC), plain and ES (papers.md#bidet-ssd, #bidet-conv, #es-bidet)."""

from collections import OrderedDict
from dataclasses import replace

from torch import Tensor, nn

from esbnn_core.errors import check_counts
from esbnn_core.layers import Tile
from esbnn_core.layers.widths import Expansion, es_widths
from esbnn_core.models.bidet_resnet import BIDET, Variant, variant_style
from esbnn_core.models.parts import make_readout, real_shortcut, real_stem
from esbnn_core.models.registry import register_family
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.style import UnitStyle

WIDTHS = (64, 64, 128, 128, 128, *[256] * 4, *[512] * 8)
"""Nominal output widths of the stem (entries 0 and 1 of the original) and of its binary blocks (entries 2 to 17)."""
LAST = 1024
"""Nominal output width of conv6 and conv7."""
STRIDED = (3, 6, 10, 14)
"""Entries with stride 2, in the place of VGG's pooling."""
SOURCE = 13
"""The entry whose output is the first source."""
STYLE = replace(BIDET, latent_init="xavier")


def _make_blocks(entries: range, e: Expansion, name: str, style: UnitStyle, shortcuts: bool) -> nn.Sequential:
    """The binary blocks of these entries, by number, each with a shortcut or without."""
    blocks = OrderedDict[str, nn.Module]()
    for entry in entries:
        before, width = WIDTHS[entry - 2], WIDTHS[entry - 1]
        path = f"{name}.{entry}"
        stride = 2 if entry in STRIDED else 1
        shortcut: nn.Module | None = None
        if shortcuts:
            shortcut = real_shortcut(before, width, e, f"{path}.shortcut") if stride == 2 else nn.Identity()
        blocks[str(entry)] = BinaryUnit(
            before, width, stride=stride, style=style, expansion=e, shortcut=shortcut, name=path
        )
    return nn.Sequential(blocks)


class BiDetVGG16(nn.Module):
    """(N, in_channels, H, W) float -> (source, final map), (N, tau*g*512, H/8, W/8) and (N, tau*g*1024, H/16, W/16).

    38x38 and 19x19 at 300x300. The sources are not sliced: a detector reads the first 512 and 1024 channels
    (papers.md#es-bidet). Entries have the numbers of the original (`vgg.layers`): `front` 2 to 13, `back` 14 to 17,
    then a max-pool of stride 1, the dilated binary conv6 and the real conv7 of 1x1.

    Args:
        expansion: plain or ES; the real conv7 expands too, at equal cost (papers.md#es-elsewhere).
        in_channels: of the stem.
        variant: how it binarises.
        shortcuts: False for BiDet without the extra shortcuts. That trunk is not published: here the strided blocks
            have no shortcut either.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown variant.
    """

    def __init__(
        self, expansion: Expansion, in_channels: int = 3, variant: Variant = "bidet", shortcuts: bool = True
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels)
        e, style = expansion, variant_style(variant, STYLE)
        conv = nn.Conv2d(in_channels, WIDTHS[0], 3, 1, 1, bias=False)
        self.stem = nn.Sequential(real_stem(conv, e, tile_first=True))
        self.front = _make_blocks(range(2, SOURCE + 1), e, "front", style, shortcuts)
        self.back = _make_blocks(range(SOURCE + 1, len(WIDTHS) + 1), e, "back", style, shortcuts)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.conv6 = BinaryUnit(WIDTHS[-1], LAST, padding=6, dilation=6, style=style, expansion=e, name="conv6")
        self.relu6 = nn.ReLU()
        w = es_widths(LAST, LAST, e, layer="conv7")
        conv7 = OrderedDict[str, nn.Module](conv=nn.Conv2d(w.carried_in, w.filters, 1, groups=w.groups))
        if w.copies > 1:
            conv7["tile"] = Tile(w.copies)
        conv7["norm"] = nn.BatchNorm2d(w.carried_out)
        conv7["act"] = nn.ReLU()
        self.conv7 = nn.Sequential(conv7)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        source = self.front(self.stem(x))
        x = self.pool(self.back(source))
        return source, self.conv7(self.relu6(self.conv6(x)))


class BiDetVGG16Classifier(BiDetVGG16):
    """The network in which the trunk is pre-trained: (N, in_channels, H, W) float -> logits (N, num_classes).

    Global average of the final map, its first 1024 channels, a linear layer. The original's layers after the trunk are
    not known, because its file holds the trunk alone: these are ours. Its tensors have the trunk's names, and there are
    fc.weight and fc.bias.

    Args:
        expansion: as BiDetVGG16, like the arguments below and the errors.
        num_classes: of the classifier.
        in_channels: of the stem.
        variant: how it binarises.
        shortcuts: False for BiDet without the extra shortcuts.
    """

    def __init__(
        self,
        expansion: Expansion,
        num_classes: int = 1000,
        in_channels: int = 3,
        variant: Variant = "bidet",
        shortcuts: bool = True,
    ) -> None:
        check_counts(num_classes=num_classes)
        super().__init__(expansion, in_channels, variant, shortcuts)
        self.readout, features = make_readout(LAST, expansion)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the same tensors, another output
        _, x = super().forward(x)
        logits: Tensor = self.fc(self.readout(x.mean((2, 3))))
        return logits


register_family("bidet_vgg16", BiDetVGG16, 300, rules=("plain", "es"), kind="trunk")
register_family("bidet_vgg16_classifier", BiDetVGG16Classifier, 224, rules=("plain", "es"))
