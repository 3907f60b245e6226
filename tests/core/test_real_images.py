"""A whole network on 128 real images: packed logits equal latent logits, so every prediction does."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import create_model, pack_
from tests.helpers.networks import narrow

IMAGES = (
    Path(__file__).parents[2] / "tasks" / "classification" / "assets" / "fashion_mnist" / "t10k-images-idx3-ubyte.xz"
)


def real_images(number: int, size: int) -> Tensor:
    """Fashion-MNIST test images (N, 3, size, size), normalised."""
    raw = np.frombuffer(lzma.decompress(IMAGES.read_bytes())[16:], np.uint8)[: number * 784].copy()
    x = torch.from_numpy(raw).view(-1, 1, 28, 28).float() / 255
    return F.interpolate((x - 0.286) / 0.353, size, mode="bilinear").expand(-1, 3, -1, -1).contiguous()


@torch.no_grad()
def warmed(model: nn.Module, images: Tensor) -> nn.Module:
    """Statistics of the images themselves, and shifts and affines that differ between the copies, as training gives."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
    for name, parameter in model.named_parameters():
        if "shift" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.train()(images)
    return model.eval()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_es_reactnet_resnet18_predicts_the_same_packed(groups: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(groups)
    images = real_images(128, 48).contiguous(memory_format=memory_format)
    with narrow():
        model = create_model("es_reactnet_resnet18", num_classes=10, tau=2, groups=groups)
    model = warmed(model, images[:64])
    model = model.to(memory_format=memory_format)
    with torch.no_grad():
        latent = torch.cat([model(x) for x in images.split(64)])
        packed_model = pack_(model)
        packed = torch.cat([packed_model(x) for x in images.split(64)])
    assert torch.equal(packed, latent)
    assert torch.equal(packed.argmax(1), latent.argmax(1))
    # a network that answers every image alike would agree by accident
    assert len(latent.argmax(1).unique()) >= 3 and latent.std(0).min() > 1e-3
