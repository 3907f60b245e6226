"""Networks that expand_ is tried on, and what must hold of each."""

import copy
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryLinear,
    RPReLU,
    RSign,
    SqueezeExcite,
)
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.conv_transpose import filters_of, weight_of
from esbnn_core.transforms.binarize import binarize_
from esbnn_core.transforms.expand import ESConfig, ExpansionPlan, expand_, plan_expansion
from esbnn_core.transforms.pack import pack_
from esbnn_core.units.conv import BinaryUnit

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
    """torch.cat of two branches in the middle."""

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


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with drawn shifts, slopes, norms and statistics: a fresh one hides what is out of place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.dim() == 1 and not key.endswith(("temperature", "tau")):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.2)
    return model


def costs(model: nn.Module, x: Tensor) -> tuple[int, int, int, int]:
    """Multiply-accumulates and weights, binary and real, of a forward pass."""
    macs, weights = {True: 0, False: 0}, {True: 0, False: 0}

    def count(module: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        weight, binary = module.weight, isinstance(module, BinaryLayer)
        placed = given[0] if getattr(module, "transposed", False) else out
        # of the output, which an ES layer has tiled
        places = placed[0].numel() // placed.shape[1 if weight.dim() > 2 else -1]
        macs[binary] += places * weight.numel()
        weights[binary] += weight.numel()

    layers = [m for m in model.modules() if isinstance(m, BinaryLayer | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return macs[True], macs[False], weights[True], weights[False]


def assert_two_groups_compute_plain(plain: nn.Module, x: Tensor) -> nn.Module:
    """With tau = 1 and g = 2 the plain weights compute the plain network; returns the expanded one.

    Every tile, slice, order, shortcut and normalisation must be in its place for that.
    """
    plain, x = plain.double(), x.double()
    model = expand_(copy.deepcopy(plain), ESConfig(tau=1, groups=2))
    kinds = (BinaryLayer, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    pairs = list(
        zip(*([m for m in net.modules() if isinstance(m, kinds)] for net in (plain, model)), strict=True)  # in order
    )
    assert any(new.groups == 2 * old.groups for old, new in pairs if isinstance(new, BinaryConv2d | BinaryLinear))
    for old, new in pairs:
        same = old.weight.data
        if getattr(old, "transposed", False):  # (I, O/groups, *k), of which both sizes change
            same = weight_of(filters_of(same, old.groups), new.groups)
        new.weight.data.copy_(same)
        for key in ("bias", "learned_scale"):
            if getattr(old, key, None) is not None:
                getattr(new, key).data.copy_(getattr(old, key).data)
    for mode in (True, False):
        want, got = plain.train(mode)(x), model.train(mode)(x)
        assert want.shape == got.shape
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    return model


def assert_costs_stay_it_trains_and_packs(
    model: nn.Module, x: Tensor, config: ESConfig, plan: ExpansionPlan | None = None
) -> None:
    """Expand the model: equal multiply-accumulates and weights, gradients everywhere, packed == latent.

    `plan` is that of the model, where it is known.
    """
    before = costs(model, x)
    expanded = len((plan or plan_expansion(model, config)).expanded)
    assert expand_(model, config) is model
    assert costs(model, x) == before
    tiled = [m for m in model.modules() if isinstance(m, ESBinaryConv2d | ESBinaryLinear | BinaryUnit)]
    assert expanded >= max(1, len(tiled))

    model(x).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key
    binary = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    assert all(layer.weight.grad is not None for layer in binary)

    model.eval()
    with torch.no_grad():
        latent = model(x)
        packed = pack_(model)(x)
    assert torch.equal(packed, latent)
