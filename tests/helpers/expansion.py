"""Networks that expand_ is tried on."""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers import (
    BinaryConv2d,
    RPReLU,
    RSign,
    SqueezeExcite,
)
from esbnn_core.transforms.binarize import binarize_

Build = Callable[[], nn.Module]


class Gate(nn.Module):
    """Squeeze-excite by hand, and a flatten spelt as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.act = RPReLU(16)
        self.conv = BinaryConv2d(16, 32, 3, padding=1, bias=True, activation=RSign(16), learned_scale=True)
        self.norm = nn.BatchNorm2d(32)
        self.down = nn.Conv2d(32, 8, 1)
        self.up = nn.Conv2d(8, 32, 1)
        self.gate = SqueezeExcite(32)
        self.second = BinaryConv2d(32, 32, 3, 2, padding=1, pad_value=-1)
        self.real = nn.Conv2d(16, 32, 1, 2)
        self.slope = nn.PReLU(32)
        self.head = nn.Linear(32 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.norm(self.conv(x))
        y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        y = self.slope(self.second(y * self.gate(y))) + self.real(x)
        y = F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 2)
        return self.head(y.view(y.size(0), -1))


class Branches(nn.Module):
    """torch.cat of two branches in the middle, which only what is before and after it can be expanded around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a = nn.Sequential(BinaryConv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.b = nn.Sequential(BinaryConv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.merge = BinaryConv2d(32, 32, 1)
        self.norm = nn.BatchNorm2d(32)
        self.last = BinaryConv2d(32, 32, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.head(self.last(self.norm(self.merge(x))))


def torchvision_net(name: str, **options: object) -> Build:
    return lambda: binarize_(torchvision.models.get_model(name, num_classes=5, **options))
