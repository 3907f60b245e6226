"""What several benchmarks use: the binary block in plain torch, and networks ready to be packed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.layers.quantizers import Temperature


class Block(nn.Module):
    """sign -> convolution -> affine -> PReLU -> + residual in plain torch.

    Its parameters are constants to torch.compile, so that freezing can use them.

    Args:
        weight: (O, I, K, K) of +-1.
        scale: (O,).
        bias: (O,).
        slope: (O,), of the PReLU.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.weight, self.slope = nn.Parameter(weight), nn.Parameter(slope)
        self.scale, self.bias = nn.Parameter(scale.view(1, -1, 1, 1)), nn.Parameter(bias.view(1, -1, 1, 1))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = F.conv2d(torch.where(x >= 0, 1.0, -1.0).to(x.dtype), self.weight, padding=self.weight.shape[-1] // 2)
        return F.prelu(y * self.scale + self.bias, self.slope) + residual


def anneal_(network: nn.Module) -> nn.Module:
    """Set every temperature to 0, so that the weights are in sign mode; returns the network."""
    for module in network.modules():
        if isinstance(module, Temperature):
            module.temperature.zero_()
    return network


@torch.no_grad()
def settle_(model: nn.Module, *batches: Tensor) -> nn.Module:
    """Give the norms the statistics of these batches; returns the model in evaluation."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # the mean over all batches
    model.train()
    for images in batches:
        model(images)
    return model.eval()


@torch.no_grad()
def warmed(model: nn.Module, images: Tensor) -> nn.Module:
    """The model in evaluation, with statistics of the images and parameters that differ between channels."""
    generator = torch.Generator().manual_seed(0)
    for module in anneal_(model).modules():
        if isinstance(module, _BatchNorm):
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
    for name, parameter in model.named_parameters():
        if "shift" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return settle_(model, images)
