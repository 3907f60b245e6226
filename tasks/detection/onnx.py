"""A packed single-stage detector as an ONNX file, up to the logits and boxes of its priors; from Python or by

python -m tasks.detection.onnx OUT.onnx --config RECIPE --model.weights packed.safetensors [--size 300 300] [--standard]
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.lit.export_command import export_command
from esbnn_core.onnx import Exported, export_onnx
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule


class _Boxes(nn.Module):
    """Images (N, 3, H, W) -> logits (N, P, K + 1) and decoded boxes (N, P, 4), for images of one size."""

    def __init__(self, detector: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck if detector.with_neck else nn.Identity()
        self.head, self.size = detector.bbox_head, size
        with torch.no_grad():
            scores, _ = self.head(self._features(torch.zeros(1, 3, *size, device=_device(detector))))
        sizes = [tuple(y.shape[-2:]) for y in scores]
        priors = torch.cat(self.head.prior_generator.grid_priors(sizes, device=scores[0].device))
        self.register_buffer("priors", priors.float())

    def _features(self, images: Tensor) -> Sequence[Tensor]:
        features: Sequence[Tensor] = self.neck(self.backbone(images))
        return features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scores, codes = self.head(self._features(images))
        logits = _by_prior(scores, self.head.cls_out_channels)
        coded = _by_prior(codes, self.head.bbox_coder.encode_size)
        return logits, self.head.bbox_coder.decode(self.priors, coded, max_shape=self.size)


def _device(module: nn.Module) -> torch.device:
    return next(iter(module.state_dict().values())).device


def _by_prior(maps: Sequence[Tensor], values: int) -> Tensor:
    """Maps (N, priors * values, h, w) -> (N, P, values), in the order of the priors."""
    return torch.cat([y.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values)) for y in maps], 1)


def export_detector(
    detector: Any, path: str | Path, size: tuple[int, int] = (300, 300), standard: bool = False
) -> Exported:
    """Write a packed single-stage detector: images (N, 3, H, W) -> logits (N, P, K + 1) and boxes (N, P, 4), float32.

    The images are normalised as by the detector's data_preprocessor, and have one size; any batch. The background is
    the last class. Boxes are corners in pixels inside the image. Scores, their threshold and NMS stay the caller's.

    Args:
        detector: of mmdet, packed.
        path: of the file.
        size: (H, W).
        standard: as export_onnx.

    Raises:
        InputError: a two-stage detector, whose regions are chosen between its stages; what export_onnx refuses.
    """
    if not hasattr(detector, "bbox_head"):
        raise InputError(
            f"an ONNX file is written of a single-stage detector, got {type(detector).__name__}, which chooses regions "
            f"between its stages: run it in Python"
        )
    network = _Boxes(detector, size).eval()
    example = torch.zeros(2, 3, *size, device=_device(detector))
    names = ("logits", "boxes")
    return export_onnx(
        network, path, (example,), standard=standard, dynamic=((0,),), output_names=names, input_names=["images"]
    )


def write(detector: Any, path: Path, options: Namespace) -> Exported:
    """export_detector with the options of the command."""
    return export_detector(detector, path, tuple(options.size), options.standard)


def add_options(parser: ArgumentParser) -> None:
    """Options of the command beside those of the task."""
    parser.add_argument("--size", type=int, nargs=2, default=(300, 300), metavar=("H", "W"), help="of the images")


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return export_command(DetectionModule, VOCDataModule, write, args, options=add_options)


if __name__ == "__main__":
    sys.exit(main())
