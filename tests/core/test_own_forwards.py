"""Modules that do more than their class: packed, folded and trained on bits as what they are, or refused by name."""

import copy
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from esbnn_core import InputError, binarize_, bit_training_report, create_model, pack_, train_on_bits_
from esbnn_core.layers import BinaryConv2d, BinaryLinear, RPReLU, Sign, Tile
from esbnn_core.transforms.fold_real import fold_real_
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.units import randn


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a BatchNorm with an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Doubled(BinaryUnit):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoubledConv(BinaryConv2d):
    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        return 2 * super().forward(x, scaled)


class DoubledLinear(BinaryLinear):
    def forward(self, x: Tensor, scaled: bool = True) -> Tensor:
        return 2 * super().forward(x, scaled)


class Raised(Sign):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.5)


class Bent(RPReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Repeat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(1, 1)


def unit(**parts: nn.Module) -> BinaryUnit:
    made = BinaryUnit(32, 32, inner_act=True)
    for key, part in parts.items():
        setattr(made, key, part)
    return made.eval()


def set_forward(module: nn.Module) -> nn.Module:
    plain = module.forward
    module.forward = MethodType(lambda self, x: 2 * plain(x), module)  # type: ignore[method-assign]
    return module


def frozen() -> nn.Module:
    norm = torchvision.ops.FrozenBatchNorm2d(32)
    norm.running_mean.fill_(5.0)
    return norm


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a unit": (lambda: Doubled(32, 32), "1 must have the forward of BinaryUnit to be packed, got that of Doubled"),
    "a layer": (
        lambda: DoubledConv(32, 32, 3),
        "1 must have the forward of BinaryConv2d to be packed, got that of",
    ),
    "a layer in a unit": (
        lambda: unit(conv=DoubledConv(32, 32, 3, padding=1)),
        r"1\.conv must have the forward of BinaryConv2d to be packed, got that of DoubledConv",
    ),
    "a sign": (
        lambda: BinaryConv2d(32, 32, 3, activation=Raised()),
        "the sign of 1 must be Identity or Sign or PositiveSign to be packed, got Raised, which the packed form",
    ),
    "an instance": (lambda: set_forward(BinaryConv2d(32, 32, 3)), "1 has a forward that was set on it, which pack_"),
    "an instance's part": (lambda: unit(inner_act=set_forward(nn.PReLU())), r"1\.inner_act has a forward that was set"),
    "a norm": (
        lambda: unit(norm=Activated(32)),
        "the norm of unit 1 must be a BatchNorm.*, got Activated",
    ),
    "a frozen norm": (lambda: unit(norm=frozen()), "the norm of unit 1 must be a BatchNorm.*, got FrozenBatchNorm2d"),
    "an inner activation": (
        lambda: unit(inner_act=nn.GELU()),
        "the inner activation of 1 must be Identity or PReLU to be packed, got GELU",
    ),
    "a tile": (lambda: unit(tile=Repeat()), "the tile of 1 must be Identity or Tile to be packed, got Repeat"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_packing_leaves_nothing_out(kind: str) -> None:
    make, says = REFUSED[kind]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), make()).eval()
    with pytest.raises(InputError, match=says):
        pack_(model)
    assert isinstance(model[0], nn.Conv2d) and model[1](randn(1, 32, 6, 6).float()).shape[0] == 1  # as it was


def test_a_linear_layer_of_another_forward_is_not_packed() -> None:
    with pytest.raises(InputError, match="the model must have the forward of BinaryLinear to be packed, got that of"):
        pack_(DoubledLinear(32, 32))


def test_what_has_another_forward_but_its_own_place_is_kept() -> None:
    model = nn.Sequential(unit(act=Bent(32)), unit(act=nn.GELU()), unit(shortcut=nn.Conv2d(32, 32, 1)))
    x = randn(2, 32, 6, 6).float()
    with torch.no_grad():
        for part in model:
            part.norm.running_mean.uniform_(-30, 30)
        want = model(x)
        assert torch.equal(pack_(model)(x), want)


def test_a_norm_that_does_more_does_so_in_evaluation_too() -> None:
    made = unit(norm=Activated(32), inner_act=nn.Identity())
    made.norm.running_mean.uniform_(-30, 30)
    x = randn(2, 32, 6, 6).float()
    with torch.no_grad():
        torch.testing.assert_close(made(x), made.act(made.norm(made.conv(x))))


def register(kind: str, name: str, unit: BinaryUnit, note: Callable[..., None]) -> None:
    getattr(unit.get_submodule(name), f"register_{kind}")(note)


PARTS: dict[str, Callable[[BinaryUnit, Callable[..., None]], object]] = {
    "norm": lambda u, _: setattr(u, "norm", Activated(32)),
    "set forward": lambda u, _: set_forward(u.act),
    **{
        f"{kind} of {name}": partial(register, kind, name)
        for kind in ("full_backward_pre_hook", "full_backward_hook")
        for name in ("conv", "conv.sign", "norm", "act")
    },
}


@pytest.mark.filterwarnings("ignore:.*train on plain layers for now")
@pytest.mark.parametrize("part", PARTS)
def test_on_bits_nothing_is_left_out(part: str) -> None:
    """What the steps on bits do not have is told, and plain steps do it: hooks are called, gradients are the same."""
    trained, called = BinaryUnit(32, 32).train(), []
    PARTS[part](trained, lambda *args: called.append(1))
    x = randn(4, 32, 6, 6).float().requires_grad_()
    (want,) = torch.autograd.grad(trained(x).square().sum(), x)
    assert len(called) == ("hook" in part)
    train_on_bits_(trained)
    assert bit_training_report(trained)[""] != ""
    (got,) = torch.autograd.grad(trained(x).square().sum(), x)
    assert len(called) == 2 * ("hook" in part)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.filterwarnings("ignore:.*train on plain layers for now")
def test_a_hook_of_a_bare_layers_sign_is_called_on_bits() -> None:
    layer, called = BinaryConv2d(32, 32, 3).train(), []
    layer.sign.register_full_backward_hook(lambda *args: called.append(1))
    train_on_bits_(layer)
    layer(randn(2, 32, 6, 6).float().requires_grad_()).sum().backward()
    assert called and "has a hook" in bit_training_report(layer)[""]


def test_folding_keeps_what_a_norm_or_a_pool_adds() -> None:
    class Shifted(nn.MaxPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    x = randn(2, 3, 12, 12).float()
    unit_ = BinaryUnit(16, 16)
    for norm, pool in ((Activated(16), nn.MaxPool2d(2)), (nn.BatchNorm2d(16), Shifted(2))):
        norm.running_mean.uniform_(-1, 1)
        rows = [[nn.Conv2d(3, 16, 3), norm, pool], [nn.Conv2d(3, 4, 3), Tile(4), norm, pool]]
        for row in rows:
            plain = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))  # something to fold
            model = nn.Sequential(nn.Sequential(*row), plain, unit_).eval()
            with torch.no_grad():
                want = model[0](x)
                folded = fold_real_(pack_(copy.deepcopy(model)))
                torch.testing.assert_close(folded[0](x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_activations_of_binarize_come_in_the_networks_type(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(dtype)
    assert binarize_(model)(randn(1, 3, 8, 8).to(dtype)).dtype == dtype
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert {parameter.device.type for parameter in binarize_(model).parameters()} == {"meta"}


def test_in_place_steps_follow_a_unit_on_bits_as_a_plain_one() -> None:
    plain = nn.Sequential(BinaryUnit(32, 32), nn.ReLU(inplace=True)).train()
    bits = train_on_bits_(copy.deepcopy(plain))
    x = randn(2, 32, 8, 8).float().requires_grad_()
    found: list[Any] = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (plain, bits)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * float(found[0].abs().max()))
    y = bits[0](x)
    y += 1.0
    assert torch.equal(y, bits[0](x) + 1.0)


def test_a_network_of_the_catalogue_with_frozen_norms_is_refused() -> None:
    model = create_model("reactnet_resnet8", num_classes=4).eval()
    unit_ = next(module for module in model.modules() if isinstance(module, BinaryUnit))
    unit_.norm = torchvision.ops.FrozenBatchNorm2d(len(unit_.norm.weight))
    with pytest.raises(InputError, match="got FrozenBatchNorm2d"):
        pack_(model)
