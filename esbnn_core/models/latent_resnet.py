"""ResNets that use their latent weights in training: a real stream beside the binary one (papers.md#latent-weights).

Differs from the paper: of "Fully Utilizing Latent Weights" (arXiv 2110.05850) only the abstract is public, not how its
real features are wired. This is our own variant of the idea.
"""

from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.layers import RPReLU
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.registry import register_family
from esbnn_core.models.resnet import R18, R34, REACTNET, BinaryResNet, Layout
from esbnn_core.units.conv import BinaryUnit

# The real stream starts as an ordinary ResNet. In front of a BatchNorm its gradient grows as the weight shrinks, that
# of the binary stream does not: from U(-1e-3, 1e-3) the real stream's would outweigh it.
LATENT = replace(REACTNET, unit=replace(REACTNET.unit, latent_init="kaiming"))


class RealBranch(nn.Module):
    """What the real stream does not share: a BatchNorm and an RPReLU for every unit, a BatchNorm for every shortcut."""

    def __init__(self, units: list[BinaryUnit]) -> None:
        super().__init__()
        widths = [unit.conv.out_channels * unit.copies for unit in units]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.acts = nn.ModuleList(RPReLU(width) for width in widths)
        self.shortcut_norms = nn.ModuleList(
            nn.BatchNorm2d(width) if isinstance(unit.shortcut, nn.Sequential) else nn.Identity()
            for unit, width in zip(units, widths, strict=True)
        )

    def forward(self, x: Tensor, units: list[BinaryUnit]) -> Tensor:
        """The stem's output through every unit with the real weight: (N, tau*g*C, H, W) -> (N, tau*g*C', H', W')."""
        parts = zip(units, self.norms, self.acts, self.shortcut_norms, strict=True)
        for unit, norm, act, shortcut_norm in parts:
            conv, shortcut = unit.conv, x
            if isinstance(unit.shortcut, nn.Sequential):
                for step in list(unit.shortcut)[:-1]:  # all but the BatchNorm is shared
                    shortcut = step(shortcut)
            y = F.conv2d(F.hardtanh(x), conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            x = act(norm(unit.tile(y)) + shortcut_norm(shortcut))
        return x


class LatentResNet(BinaryResNet):
    """A ReActNet-ResNet whose latent weights also work in a real stream: (N, in_channels, H, W) -> (N, num_classes).

        binary stream   the units as they are: RSign, sign(W) with its scale, BN, shortcut, RPReLU
        real stream     conv(hardtanh(x), W) with the latent W itself, BN, shortcut, RPReLU (RealBranch)

    Both share the stem, every W, the real 1x1 of the shortcuts and the read-out. `forward` is the binary network alone,
    a training loss reads `both`. The real stream is for training: drop_training_parts_ removes it, pack_ and packed
    files leave it out, and esbnn_core.count does not count it.

    Args:
        layout: depth, widths and stem.
        expansion: plain or ES.
        num_classes: of the classifier.
        in_channels: of the stem.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer.
    """

    def __init__(self, layout: Layout, expansion: Expansion, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(layout, LATENT, expansion, num_classes, in_channels)
        self.real: RealBranch | None = RealBranch(self._units())

    def _units(self) -> list[BinaryUnit]:
        return [unit for unit in self.stages.modules() if isinstance(unit, BinaryUnit)]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(binary logits, real logits), each (N, num_classes); the first are those of forward.

        Raises:
            InputError: the real stream was removed.
        """
        if self.real is None:
            raise InputError(
                "the network has no real stream any more (drop_training_parts_ or pack_ removed it): build it again "
                "with create_model to train it"
            )
        x = self.stem(x)
        return self.head(self.stages(x)), self.head(self.real(x, self._units()))

    @property
    def has_training_parts(self) -> bool:
        """Whether the real stream is still there."""
        return self.real is not None

    def drop_training_parts_(self) -> "LatentResNet":
        """Remove what only training uses, the real stream, in place; returns the network."""
        self.real = None
        return self


register_family("latent_resnet18", partial(LatentResNet, R18), 224, rules=("plain", "es"))
register_family("latent_resnet34", partial(LatentResNet, R34), 224, rules=("plain", "es"))
