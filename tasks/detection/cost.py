"""Operations and parameters of a detector: of an image, and of each region of a two-stage detector."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from esbnn_core import Count, count
from esbnn_core.errors import InputError, reason_of


@dataclass(frozen=True)
class DetectorCost:
    """Operations of one image, by the rule of esbnn_core.counting; NMS, decoding and pooling of regions do not count.

    Attributes:
        size: (3, H, W) of the image.
        image: the count over the whole image.
        region: the count of one region, None for a single-stage detector.
        regions: proposals of an image at test time.
    """

    size: tuple[int, int, int]
    image: Count
    region: Count | None
    regions: int

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs of an image with all its regions."""
        return self.image.ops + (self.regions * self.region.ops if self.region else 0)

    @property
    def params(self) -> int:
        """Parameters of the whole detector."""
        return self.image.params  # _Image contains the whole detector

    @property
    def binary_params(self) -> int:
        """Parameters of 1 bit each."""
        return self.image.binary_params

    def sentence(self) -> str:
        """One line for people."""
        _, height, width = self.size
        parts = f"OPs {self.ops / 1e9:.3f} G at {height}x{width}"
        if self.region is not None:
            parts += f" ({self.image.ops / 1e9:.3f} G and {self.regions} regions of {self.region.ops / 1e9:.4f} G)"
        return f"{parts}; parameters {self.params / 1e6:.2f} M, {self.binary_params / 1e6:.2f} M of them 1 bit"


class _Image(nn.Module):
    """Everything that runs over the whole image."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Any:
        features = self.detector.extract_feat(x)
        head = self.detector.rpn_head if _two_stages(self.detector) else self.detector.bbox_head
        return head(features)


class _Region(nn.Module):
    """Everything that runs on the features of one region."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Any:
        if self.head.with_shared_head:
            x = self.head.shared_head(x)
        return self.head.bbox_head(x)


def count_detector(detector: Any, size: tuple[int, int, int]) -> DetectorCost:
    """Count a single-stage or two-stage detector of mmdet, latent or packed, for one image of that size.

    Raises:
        InputError: a detector of an unknown structure.
    """
    try:
        image = count(_Image(detector), size)
        region, regions = None, 0
        if _two_stages(detector):
            extractor = detector.roi_head.bbox_roi_extractor
            side = extractor.roi_layers[0].output_size
            region = count(_Region(detector.roi_head), (extractor.out_channels, *side))
            regions = int(detector.test_cfg.rpn.max_per_img)
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise InputError(f"the detector {type(detector).__name__} cannot be counted ({reason_of(error)})") from error
    return DetectorCost(size, image, region, regions)


def _two_stages(detector: Any) -> bool:
    return getattr(detector, "roi_head", None) is not None
