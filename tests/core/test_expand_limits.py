"""expand_: what it refuses or leaves plain, by name, and that the model is whole afterwards."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError, create_model
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    ESBinaryConv2d,
)
from esbnn_core.models import model_spec
from esbnn_core.transforms.binarize import binarize_
from esbnn_core.transforms.binarize_modules import BinaryConfig
from esbnn_core.transforms.expand import ESConfig, expand_, plan_expansion
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.expansion import Branches, Build, Gate, torchvision_net


class Odd(nn.Module):
    """A stem, a binary layer, and an operation in between."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.conv = BinaryConv2d(8, 8, 3, padding=1)
        self.between = between
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.conv(self.between(self.stem(x))))
        return self.head((x * self.scale).mean((2, 3)))


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = BinaryConv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.stem(x)).mean() + self.conv.weight.abs().mean()


def by_hand(x: Tensor) -> Tensor:
    """A channel shuffle that has the number of channels in its code."""
    return x.view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize(
    "model, said",
    [
        (Odd(by_hand), r"conv: its input is connected to .view\(\) \(fx node view, after layer stem\)"),
        (Odd(lambda x: torch.cat([x[:, :4], x[:, 4:]], 1)), r"its input is connected to getitem .*after layer stem"),
        (Odd(lambda x: F.group_norm(x, 2)), r"conv: its input is connected to group_norm"),
        (Odd(lambda x: x * x.shape[1]), r"its input is connected to mul \(fx node mul, after layer stem"),
        (Odd(lambda x: x.flip(1)), r"conv: its input is connected to .flip\(\) \(fx node flip, after layer stem"),
        (Odd(lambda x: x * x.sum(1, keepdim=True)), r"conv: its input is connected to .sum\(\) \(fx node sum_1"),
        (
            Odd(lambda x: F.softmax(x, 1)),
            r"conv: its input is connected to softmax \(fx node softmax",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.LocalResponseNorm(2), BinaryConv2d(8, 8, 1)),
            r"module 1 \(LocalResponseNorm\)",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 9, 1), BinaryConv2d(9, 9, 1, groups=9), nn.BatchNorm2d(9), nn.ReLU()),
            r"1: it has groups=9, which tau=2 does not divide",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), BinaryConv2d(8, 8, 1), nn.Identity(), nn.Linear(5, 2)),
            r"1: its output is connected to module 3 \(Linear\)",
        ),
        (nn.Sequential(nn.Flatten(), BinaryLinear(12, 8)), r"1: its input is the input of the network"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), r"no binary layer"),
        (Weights(), r"conv: its input belongs to conv, whose conv.weight the forward reads"),
        (expand_(create_model("reactnet_resnet8")), r"stem.tile is a Tile.*expanded already"),
        (create_model("rep_reactnet_resnet8"), r"stem.tile is a Tile.*expanded already"),
        (Odd(lambda x: x if x.sum() > 0 else -x), r"forward of Odd cannot be traced by torch.fx \(.*control flow"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_network_that_cannot_be_expanded_is_named_and_left_whole(model: nn.Module, said: str) -> None:
    before, modules = copy.deepcopy(model.state_dict()), [*model.named_modules()]
    with pytest.raises(InputError, match=said):
        expand_(model)
    assert [*model.named_modules()] == modules
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    "build, config, said",
    [
        (lambda: create_model("reactnet_resnet8"), ESConfig(3), r"stages.layer1.0 has width 16.*tau=3 times groups=1"),
        (torchvision_net("resnet18"), ESConfig(2, 3), r"layer1.0.conv1 has width 64.*tau=2 times groups=3"),
        (lambda: create_model("recu_resnet20"), ESConfig(copy_spread=1.0), r"stages.layer1.0 must be 0, got 1.0"),
        (Gate, ESConfig(copy_spread=1.0), r"copy_spread of layer second must be 0, got 1.0: it has a bare sign"),
        (Gate, ESConfig(0), r"tau must be a whole number of at least 1, got 0"),
        (Gate, ESConfig(8), r"gate has width 4, which tau=8"),
    ],
)
def test_factors_that_do_not_fit_are_named(build: Build, config: ESConfig, said: str) -> None:
    model = build()
    modules = [*model.named_modules()]
    for verb in (plan_expansion, expand_):
        with pytest.raises(InputError, match=said):
            verb(model, config)
    assert [*model.named_modules()] == modules


def test_a_fresh_bias_is_drawn_as_the_layer_draws_it() -> None:
    conv = expand_(Gate(), ESConfig(2, 2)).conv
    assert conv.bias.shape == (16,)
    assert 0 < conv.bias.abs().min() <= conv.bias.abs().max() <= (2 * 16 * 9) ** -0.5


class Shared(nn.Module):
    """conv and norm of the trunk, one of which also makes an output: it cannot be widened for one call alone."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.conv = BinaryConv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 8, 1)
        self.last = BinaryConv2d(8, 8, 1)
        self.fc = nn.Linear(8, 2)
        self.second = second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.norm(self.conv(x))
        if self.second == "input":
            z = self.side(x).flip(1)
            return self.fc((self.last(y) + self.norm(self.conv(z))).mean((2, 3))), y.mean()
        again = self.conv(x) if self.second == "conv" else self.norm(self.side(x))
        return self.fc(self.last(y).mean((2, 3))), again


@pytest.mark.parametrize(
    "second, said",
    [
        ("conv", "output is an output of the network"),
        ("norm", "output is an output"),
        ("input", "input is connected to .flip"),
    ],
)
def test_a_module_called_twice_is_changed_for_both_calls_or_for_none(second: str, said: str) -> None:
    plan = plan_expansion(Shared(second))
    assert "conv" not in plan.expanded
    assert said in plan.left["conv"]


def test_a_layer_whose_bare_output_is_cut_stays_plain() -> None:
    class Bare(Branches):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(BinaryUnit(16, 16), BinaryConv2d(16, 16, 1), nn.PReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.norm(self.merge(torch.cat([self.a(self.stem(x)).flip(1)] * 2, 1)))))

    # after a conv without a norm the first C channels would be tau times the same C/tau maps
    plan = plan_expansion(Bare())
    assert plan.expanded == ("a.0", "last")
    assert list(plan.left) == ["a.1", "merge", "b.0"]
    assert plan.left["a.1"].startswith("its output is connected to .flip() (fx node flip, after layer a.2)")


def test_a_changed_network_does_not_keep_its_spec() -> None:
    model = create_model("reactnet_resnet8")
    model.stem.norm.eps = 1e-3
    assert model_spec(expand_(model)) is None
    assert model_spec(expand_(create_model("reactnet_resnet8"))).name == "es_reactnet_resnet8"


def test_binarize_with_bare_signs_and_a_real_shortcut() -> None:
    config = BinaryConfig(shift=False, filter_fn=lambda name, _: ".conv" in name)
    model = binarize_(torchvision.models.resnet18(), config)
    expand_(model, ESConfig(2, 2))
    assert isinstance(model.layer1[0].conv1, ESBinaryConv2d)
    real, tile = model.layer2[0].downsample[0]
    assert real.weight.shape == (64, 128, 1, 1) and real.groups == 2
    assert tile.copies == 8


def tied(swapped: bool) -> nn.Module:
    """Two binary layers with one weight, or two real ones that stay as they are."""
    ends = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    model = nn.Sequential(ends[0], BinaryConv2d(8, 8, 3), nn.BatchNorm2d(8), BinaryConv2d(8, 8, 3), ends[1])
    if swapped:
        model[3].weight = model[1].weight
    else:
        model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
        model[9].weight = model[8].weight
    return model


def test_a_parameter_of_two_layers_is_not_untied() -> None:
    model = tied(swapped=True)
    with pytest.raises(InputError, match=r"1\.weight and 3\.weight must not be one parameter for expand_, which would"):
        expand_(model)
    assert model[3].weight is model[1].weight and model[1].weight.shape == (8, 8, 3, 3)
    model = expand_(tied(swapped=False))
    assert model[9].weight is model[8].weight and isinstance(model[1], ESBinaryConv2d | nn.Sequential)


def test_a_constant_that_a_forward_makes_is_none_of_its_tensors() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), BinaryConv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))

    model = expand_(Mean())
    assert any(isinstance(module, ESBinaryConv2d) for module in model.modules())
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4) and not hasattr(model, "_tensor_constant0")
