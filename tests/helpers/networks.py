"""Which registered networks the tests run whole, and narrow; how a BNext is brought into sign mode."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import list_models
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.models import bnext18, reactnet, resnet, vgg
from esbnn_core.transforms.pack import pack_

HEAVY = ("bnext_small", "bnext_middle", "bnext_large")
"""Up to 327 million parameters of the very modules that bnext_tiny has: built on the meta device and counted only."""

VIT = [name for name in list_models() if "binaryvit" in name]
"""Networks with a fixed image size; tests/core/test_binaryvit.py has them."""

LIGHT = [name for name in list_models(kind="classifier") if not name.endswith(HEAVY) and name not in VIT]
BRICKS = [name for name in LIGHT if not name.endswith(("resnet34", "bnext_tiny"))]
"""One network for each way of building: a ResNet-34 repeats a ResNet-18, bnext_tiny repeats bnext_micro."""

PLAIN = [name for name in LIGHT if not name.startswith(("es_", "rep_"))]
WITHOUT_REP = ("latent_resnet18", "latent_resnet34", "bidet_resnet18_classifier", "bidet_vgg16_classifier")
"""Plain networks that have an es_ version only."""


@contextmanager
def narrow() -> Iterator[None]:
    """Registered networks of the wide families are built with a quarter of their widths, a sixteenth of the weights.

    What a network is made of does not depend on them, what it takes to draw, train and pack it does. Tests of counted
    operations, of published numbers and of the originals' outputs have the whole widths.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (bnext18, reactnet, vgg):
            patch.setattr(module, "WIDTHS", tuple(width // 4 for width in module.WIDTHS))
        patch.setattr(vgg, "LAST", vgg.LAST // 4)
        # the layouts are frozen, and the registered builders hold them
        for layout in (resnet.R18, resnet.R34):
            patch.setitem(vars(layout), "widths", tuple(width // 4 for width in layout.widths))
        yield


def annealed(model: nn.Module) -> nn.Module:
    """The model with every temperature at 0, where its weights are signs."""
    for module in model.modules():
        if isinstance(module, Temperature):
            module.temperature.zero_()
    return model


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Evaluation mode with statistics, shifts, slopes and affines away from their neutral starts."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dim() != 1 or not tensor.is_floating_point() or tensor.numel() == 1:
                continue
            noise = torch.randn(tensor.shape, generator=g, dtype=torch.float64).to(tensor)
            if name == "running_var":
                tensor.copy_(noise.abs() * tensor.mean() + 0.1)
            else:
                tensor.add_(noise, alpha=0.3)
    return model.eval()


@torch.no_grad()
def agree(model: nn.Module, x: Tensor) -> nn.Module:
    """Pack a copy and compare; returns the packed copy."""
    want = model(x)
    packed = pack_(copy.deepcopy(model))
    got = packed(x)
    assert got.dtype == want.dtype and torch.equal(got, want)
    assert want.isfinite().all() and want.std() > 0
    return packed
