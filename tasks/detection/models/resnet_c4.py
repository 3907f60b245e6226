"""BiDet's ResNet-18 divided for Faster R-CNN in mmdet: a backbone of stride 16, and layer4 on regions.

See papers.md#bidet-faster-rcnn, #es-bidet.
"""

from torch import Tensor, nn

from esbnn_core.checkpoint.format import check_state
from esbnn_core.errors import InputError
from esbnn_core.layers.widths import Expansion
from esbnn_core.models import BinaryResNet
from esbnn_core.models.bidet_resnet import BiDetResNet, Variant
from tasks.detection.mmdet.api import MODELS


@MODELS.register_module()
class ESBiDetResNet18(nn.Module):
    """(N, 3, H, W) -> one map of stride 16, (N, tau*groups*256, ceil(H/16), ceil(W/16)), in a tuple.

    Args:
        tau: of the expansion; 1 is the plain network, with groups = 1.
        groups: of the expansion.
        copy_spread: of the expansion.
        variant: as esbnn_core.models.bidet_resnet.BiDetResNet.
        shortcuts: likewise.
        frozen_stem: keep the first convolution and its norm as loaded, the norm in evaluation, as in the original.
            Set it false if nothing is loaded.

    Raises:
        InputError: a width that tau*groups does not divide, naming the layer; an unknown variant.
    """

    def __init__(
        self,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        variant: Variant = "bidet",
        shortcuts: bool = True,
        frozen_stem: bool = True,
    ) -> None:
        super().__init__()
        trunk = BiDetResNet(Expansion(tau, groups, copy_spread), None, 3, variant, shortcuts)
        self.stem, self.stages = trunk.stem, trunk.stages
        del self.stages.layer4
        self.variant, self.shortcuts, self.frozen_stem = variant, shortcuts, frozen_stem
        if frozen_stem:
            # here, because Lightning keeps every module's mode and never calls train
            self.stem.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.stages(self.stem(x)),)

    def train(self, mode: bool = True) -> "ESBiDetResNet18":
        """As for any module, but a frozen stem stays in evaluation."""
        super().train(mode)
        if self.frozen_stem:
            self.stem.eval()
        return self


@MODELS.register_module()
class BiDetResNet18(ESBiDetResNet18):
    """The plain network: ESBiDetResNet18 with tau = groups = 1."""

    def __init__(self, variant: Variant = "bidet", shortcuts: bool = True, frozen_stem: bool = True) -> None:
        super().__init__(1, 1, 0.0, variant, shortcuts, frozen_stem)


@MODELS.register_module()
class ESBiDetResLayer(nn.Module):
    """layer4 on regions, mmdet's shared head: (R, tau*groups*256, 7, 7) -> (R, tau*groups*512, 4, 4).

    Arguments and errors as ESBiDetResNet18.
    """

    def __init__(
        self,
        tau: int = 2,
        groups: int = 1,
        copy_spread: float = 0.0,
        variant: Variant = "bidet",
        shortcuts: bool = True,
    ) -> None:
        super().__init__()
        self.layer4 = BiDetResNet(Expansion(tau, groups, copy_spread), None, 3, variant, shortcuts).layer4

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer4(x)
        return out


@MODELS.register_module()
class BiDetResLayer(ESBiDetResLayer):
    """The plain layer4: ESBiDetResLayer with tau = groups = 1."""

    def __init__(self, variant: Variant = "bidet", shortcuts: bool = True) -> None:
        super().__init__(1, 1, 0.0, variant, shortcuts)


def load_trunk_(detector: nn.Module, trunk: BiDetResNet | BinaryResNet) -> nn.Module:
    """Copy a trunk, filled by load_official or a checkpoint, into a Faster R-CNN's backbone and shared head.

    The read-out of the trunk's pre-training is not copied. Returns the detector.

    Raises:
        InputError: the detector has another backbone or shared head, or tensors differ (named); it is then unchanged.
    """
    backbone = getattr(detector, "backbone", None)
    shared = getattr(getattr(detector, "roi_head", None), "shared_head", None)
    if not isinstance(backbone, ESBiDetResNet18) or not isinstance(shared, ESBiDetResLayer):
        raise InputError(
            f"the detector must be built on a BiDet ResNet-18 and its layer4, got a {type(backbone).__name__} and a "
            f"{type(shared).__name__}: give the trunk to another detector"
        )
    state = {name: tensor for name, tensor in trunk.state_dict().items() if not name.startswith("fc.")}
    prefix = "stages.layer4."
    regions = {f"layer4.{n.removeprefix(prefix)}": tensor for n, tensor in state.items() if n.startswith(prefix)}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    check_state(backbone, rest, "the trunk")
    check_state(shared, regions, "the trunk's layer4")
    backbone.load_state_dict(rest)
    shared.load_state_dict(regions)
    return detector
