"""Small networks in float64, and inputs for them."""

from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.layers.base import binary_layers
from tasks.super_resolution.unet import BIDiffSRUNet

SMALL: dict[str, Any] = {
    "inner_channels": 8,
    "norm_groups": 2,
    "channel_mults": (1, 2, 4),
    "res_blocks": 1,
    "real_resolutions": (256,),
}
"""Three levels, of which the top one is real on the way up."""


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(**options: Any) -> BIDiffSRUNet:
    """A small network in float64, in evaluation, whose every parameter is away from its neutral start."""
    torch.manual_seed(0)
    unet = BIDiffSRUNet(**{**SMALL, **options}).double().eval()
    return stir(unet)


@torch.no_grad()
def stir(unet: BIDiffSRUNet, seed: int = 1) -> BIDiffSRUNet:
    """Add noise to every vector (shifts, slopes, biases, affines), make binary sums matter; returns the network."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in unet.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
    for _, layer in binary_layers(unet):
        layer.weight.mul_(300)  # they start below 1e-3
    return unet


def meta(**options: Any) -> BIDiffSRUNet:
    """A network of the official size without memory, to count."""
    with torch.device("meta"):
        return BIDiffSRUNet(**options)


def pair(side: int = 16, batch: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A noisy sample and a condition (N, 3, side, side + 8)."""
    return randn(batch, 3, side, side + 8, seed=seed), randn(batch, 3, side, side + 8, seed=seed + 1).sigmoid()


def named(model: nn.Module, kind: type[nn.Module]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}
