"""A packed BI-DiffSR UNet as an ONNX file, from Python or by the command

python -m tasks.super_resolution.onnx OUT.onnx --config RECIPE --model.weights packed.safetensors [--standard]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from esbnn_core.lit.export_command import export_command
from esbnn_core.onnx import Exported, export_onnx
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule
from tasks.super_resolution.unet import BIDiffSRUNet

NAMES = ("sample", "timestep", "condition")


class _Noise(nn.Module):
    """The UNet with a tensor as its output."""

    def __init__(self, unet: BIDiffSRUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        noise: Tensor = self.unet(sample, timestep, condition, return_dict=False)[0]
        return noise


def export_unet(unet: BIDiffSRUNet, path: str | Path, standard: bool = False) -> Exported:
    """Write a packed UNet: sample (N, 3, H, W), timestep (1,), condition (N, 3, H, W) -> noise (N, 3, H, W), float32.

    Any batch, and any H and W that are multiples of 2^(levels - 1). The whole batch has one timestep, as the steps of a
    pipeline have. The schedule and its loop stay the caller's.

    Args:
        unet: packed, for example `pack_(pipe.unet)`.
        path: of the file.
        standard: as export_onnx.

    Raises:
        InputError: what export_onnx refuses.
    """
    side = 4 * 2 ** (unet.levels - 1)
    halves = unet.config.out_channels, unet.config.in_channels - unet.config.out_channels
    sample, condition = (torch.zeros(2, channels, side, side + side // 2) for channels in halves)
    maps = (0, 2, 3)
    inputs = (sample, torch.zeros(1), condition)
    return export_onnx(
        _Noise(unet).eval(),
        path,
        inputs,
        standard=standard,
        dynamic=(maps, (), maps),
        input_names=NAMES,
        output_names=["noise"],
    )


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return export_command(
        SuperResolutionModule,
        SRDataModule,
        lambda unet, path, options: export_unet(unet, path, options.standard),
        args,
        links=("scale",),
    )


if __name__ == "__main__":
    sys.exit(main())
