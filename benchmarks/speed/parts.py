"""What several benchmarks use: the binary block in plain torch, and networks ready to be packed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
