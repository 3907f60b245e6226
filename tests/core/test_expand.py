"""expand_: against the es_ networks, against the plain network, by counted costs, and what it refuses by name.

Two facts tie an expanded network to something known. The es_ networks are built layer by layer without a graph. And
with tau = 1, g = 2 the group convolution of two whole copies, (O, C, k, k) as the plain one, computes with the plain
weights what the plain network computes: every tile, slice, shortcut and normalisation must be in its place for that.
"""

import copy
import logging
from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from esbnn_core import create_model
from esbnn_core.layers import (
    BinaryConv2d,
    RSign,
    SliceChannels,
    Tile,
)
from esbnn_core.layers.base import BinaryLayer, binary_layers
from esbnn_core.models import model_spec, resnet
from esbnn_core.transforms.binarize import binarize_
from esbnn_core.transforms.binarize_modules import BinaryConfig
from esbnn_core.transforms.expand import ESConfig, expand_, plan_expansion
from esbnn_core.units import BinaryUnit, UnitStyle
from tests.helpers.expansion import (
    Branches,
    Build,
    Gate,
    assert_costs_stay_it_trains_and_packs,
    assert_two_groups_compute_plain,
    stirred,
    torchvision_net,
)
from tests.helpers.log import Log
from tests.helpers.networks import narrow


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """Two units a stage where a ResNet-20 has six of the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(resnet.R20), "units", (2, 2, 2))
        yield


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("tau, groups", [(2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize(
    "name, size",
    [("reactnet_resnet8", 32), ("recu_resnet20", 32), ("reactnet_resnet20", 33), ("bireal_resnet18", 32)],
)
def test_the_networks_of_the_catalogue_become_their_es_version(name: str, size: int, tau: int, groups: int) -> None:
    with narrow():
        plain = create_model(name, num_classes=7, in_channels=2)
        twin = stirred(create_model(f"es_{name}", num_classes=7, in_channels=2, tau=tau, groups=groups))
        model = expand_(plain, ESConfig(tau, groups))
    assert model is plain
    assert shapes(model) == shapes(twin)
    assert model_spec(model) == model_spec(twin)
    model.load_state_dict(twin.state_dict())
    x = torch.randn(2, 2, size, size)
    for mode in (True, False):
        torch.manual_seed(0)
        assert torch.equal(model.train(mode)(x), twin.train(mode)(x))


@pytest.mark.parametrize("name", ["reactnet_resnet18", "recu_resnet18", "recu_resnet34", "bireal_resnet34"])
def test_the_big_ones_have_the_same_architecture(name: str) -> None:
    with torch.device("meta"):
        model, twin = expand_(create_model(name)), create_model(f"es_{name}")
    assert shapes(model) == shapes(twin)
    assert repr(model) == repr(twin)
    assert model_spec(model) == model_spec(twin)


class Trunk(nn.Module):
    """No classifier, units of several shapes, an output that a module makes, a depthwise convolution on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.first = BinaryUnit(16, 32, inner_act=True, style=UnitStyle(act="prelu"))
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.between = nn.Sequential(nn.BatchNorm2d(32), BinaryUnit(32, 32, shortcut=nn.Identity()))
        style = UnitStyle(shift=False, ste="clip", act="hardtanh")
        self.last = BinaryUnit(32, 16, dilation=2, padding=2, style=style)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.depthwise(self.first(self.stem(x)))))


class Twice(nn.Module):
    """One layer called twice, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = BinaryConv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.again = self.norm
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.conv(x))
        x = x + self.again(self.conv(x))
        return self.fc(x.mean([-2, -1]))


def vgg() -> nn.Module:
    """vgg11_bn of an eighth of its widths."""
    widths = (8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
    features = torchvision.models.vgg.make_layers(widths, batch_norm=True)
    with torch.device("meta"):  # its classifier has 100 million weights
        model = torchvision.models.VGG(features, 5, init_weights=False)
    model.classifier[0] = nn.Linear(64 * 49, 64)
    model.classifier[3] = nn.Linear(64, 32)
    model.classifier[6] = nn.Linear(32, 5)
    return binarize_(model)


class Narrow(torchvision.models.ResNet):
    """A ResNet of torchvision of a quarter of its widths after the stem."""

    def __init__(self, block: type[nn.Module], depths: list[int]) -> None:
        super().__init__(block, depths, num_classes=5)
        self.fc = nn.Linear(self.fc.in_features // 4, 5)

    def _make_layer(self, block: type[nn.Module], planes: int, *args: int, **options: int) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, *args, **options)


def shufflenet() -> nn.Module:
    """The halves of shufflenet_v2_x1_0, of 58 channels and more, in fewer blocks."""
    return torchvision.models.ShuffleNetV2([2, 2, 2], [24, 116, 232, 464, 64], num_classes=5)


# expansion, channels, blocks and stride of each stage
MOBILE = [[1, 32, 1, 1], [6, 48, 2, 2], [6, 64, 2, 2], [6, 96, 1, 1]]
NETS: dict[str, tuple[Build, int]] = {
    "resnet18": (lambda: binarize_(Narrow(BasicBlock, [2, 2, 2, 2])), 32),
    "resnet50": (lambda: binarize_(Narrow(Bottleneck, [1, 2, 1, 1])), 40),
    "vgg11_bn": (vgg, 32),
    "mobilenet_v2": (torchvision_net("mobilenet_v2", width_mult=0.25, inverted_residual_setting=MOBILE), 40),
    "shufflenet": (lambda: binarize_(shufflenet()), 32),
    "squeezenet": (torchvision_net("squeezenet1_1"), 32),
    "timm resnet10t": (
        lambda: binarize_(timm.create_model("resnet10t", num_classes=5, channels=(16, 32, 64, 128))),
        32,
    ),
    "gate": (Gate, 12),
    "trunk": (Trunk, 9),
    "branches": (Branches, 10),
    "twice": (Twice, 8),
    "reactnet": (lambda: create_model("reactnet_resnet8"), 32),
    "recu": (lambda: create_model("recu_resnet20"), 32),
}
each_net = pytest.mark.parametrize("name", NETS)


def net(name: str) -> tuple[nn.Module, Tensor]:
    build, size = NETS[name]
    torch.manual_seed(1)
    model = stirred(build())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, torch.randn(2, 3, size, size)


@each_net
def test_two_groups_of_plain_weights_compute_the_plain_network(name: str) -> None:
    assert_two_groups_compute_plain(*net(name))


@pytest.mark.parametrize(
    "name, groups",
    [
        *((name, 2) for name in NETS if name != "shufflenet"),
        ("shufflenet", 1),  # 58 channels
        *((name, 1) for name in ("resnet18", "gate", "trunk", "branches", "twice", "reactnet", "recu")),
    ],
)
def test_costs_stay_it_trains_and_packs(name: str, groups: int) -> None:
    model, x = net(name)
    assert_costs_stay_it_trains_and_packs(model, x, ESConfig(2, groups))


@pytest.mark.slow
def test_every_layer_of_the_usual_networks_is_expanded() -> None:
    for name in ("resnet18", "resnet50", "vgg11_bn", "timm resnet10t", "reactnet", "recu"):
        model, _ = net(name)
        plan = plan_expansion(model)
        layers = [m for m in model.modules() if isinstance(m, BinaryLayer)]
        assert (len(plan.expanded), plan.left) == (len(layers), {}), name
    assert plan_expansion(net("vgg11_bn")[0]).expanded[-1] == "classifier.3"
    # with the two real convolutions of the gate by hand, the one on the shortcut, and the SqueezeExcite
    assert plan_expansion(Gate()).expanded == ("conv", "down", "up", "gate", "second", "real")


def test_values_that_keep_their_shape_or_are_repeated() -> None:
    plain, _ = net("resnet18")
    plain.bn1.num_batches_tracked.fill_(5)
    plain.layer1[0].bn1.eval()
    plain.layer1[0].bn2.weight.requires_grad_(False)
    plain.layer2[0].conv1.weight.requires_grad_(False)
    plain.conv1.eval()
    plain.layer2[1].conv1.eval()
    model = expand_(copy.deepcopy(plain).half(), ESConfig(2, 2))
    plain.half()
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    for old, new in ((plain.bn1, model.bn1), (plain.layer3[1].bn2, model.layer3[1].bn2)):
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(new, key), torch.cat([getattr(old, key)] * 4))
        assert new.num_batches_tracked == old.num_batches_tracked
        assert new.num_features == 4 * old.num_features
    assert model.bn1.num_batches_tracked == 5
    old, new = plain.layer4[0].conv1, model.layer4[0].conv1
    assert torch.equal(new.sign.shift, torch.cat([old.sign.shift] * 4))
    assert (new.stride, new.padding, new.kernel_size) == (old.stride, old.padding, old.kernel_size)
    assert torch.equal(model.conv1[0].weight, plain.conv1.weight)
    assert torch.equal(model.fc[1].weight, plain.fc.weight)
    assert not model.layer1[0].bn1.training
    assert model.layer1[0].bn2.training
    assert not model.conv1.training
    assert not model.layer2[1].conv1.training
    assert not model.layer2[1].conv1.sign.training
    assert not model.layer1[0].bn2.weight.requires_grad
    assert not model.layer2[0].conv1.weight.requires_grad
    assert model.layer2[0].conv2.weight.requires_grad


@pytest.mark.parametrize("name", ["reactnet", "resnet18", "twice"])
def test_tau_one_and_one_group_leave_everything(name: str) -> None:
    model, _ = net(name)
    before = {id(module) for module in model.modules()}, repr(model)
    assert expand_(model, ESConfig(1, 1)) is model
    assert ({id(module) for module in model.modules()}, repr(model)) == before
    assert plan_expansion(model, ESConfig(1, 1)).expanded == ()


@pytest.mark.parametrize("tau, groups", [(2, 1), (2, 2)])
def test_the_spread_reaches_every_shift(tau: int, groups: int) -> None:
    def shifts(model: nn.Module) -> list[Tensor]:
        return [m.shift.detach() for m in model.modules() if isinstance(m, RSign)]

    twin = create_model("es_reactnet_resnet8", tau=tau, groups=groups, copy_spread=0.5)
    plain = create_model("reactnet_resnet8")
    for got, want in zip(shifts(expand_(plain, ESConfig(tau, groups, 0.5))), shifts(twin), strict=True):
        assert torch.equal(got, want)
        assert len(got.unique()) == tau * tau * groups
    started = shifts(expand_(NETS["resnet18"][0](), ESConfig(tau, groups, 0.5)))
    assert len(started) == 20
    assert all(len(shift.unique()) == tau * tau * groups for shift in started)


def test_many_layers_that_are_left_plain_are_one_line(caplog: Log) -> None:
    model = binarize_(timm.create_model("resnest14d", num_classes=5))
    plan = plan_expansion(model)
    weights = {name: layer.weight.numel() for name, layer in binary_layers(model)}
    with caplog.at_level(logging.WARNING, "esbnn"):
        expand_(model)
    (line,) = caplog.messages
    number = len(plan.left)
    assert number > 9 and f"leaves {number} of {number + len(plan.expanded)} layers plain" in line
    share = 100 * sum(weights[name] for name in plan.left) / sum(weights.values())
    assert f"{share:.1f} % of the binary weights" in line and f"and {number - 1} more" in line


def test_what_is_left_plain_is_logged_by_name(caplog: Log) -> None:
    class Flipped(Branches):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.cat([self.a(x).flip(1), self.b(x).flip(1)], 1)
            return self.head(self.last(self.norm(self.merge(x))))

    model = Flipped()
    plan = plan_expansion(model)
    before = {name: layer.weight.numel() for name, layer in binary_layers(model)}
    with caplog.at_level(logging.WARNING, "esbnn"):
        expand_(model)
    assert plan.expanded == ("a.0", "b.0", "last")
    assert list(plan.left) == ["merge"]
    share = 100 * before["merge"] / sum(before.values())
    assert caplog.messages == [
        f"expand_ leaves 1 of 4 layers plain, {share:.1f} % of the binary weights: merge, because its input is "
        "connected to .flip() (fx node flip, after layer a.1), through which expanded channels cannot pass"
    ]
    # the branches are cut after their norms, the tile comes back after the layer that is left
    assert [type(m) for m in model.a[1]] == [nn.BatchNorm2d, SliceChannels]
    assert [type(m) for m in model.merge] == [BinaryConv2d, Tile]
    assert plan_expansion(net("trunk")[0]).left == {
        "depthwise": "it is real with groups=32 of fewer filters than tau*groups, and its sums are fine already"
    }


class Keeping(nn.Module):
    """Keeps what it has computed for evaluation, as timm's LeViT does with its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(*pair, 3, padding=1) for pair in ((3, 8), (8, 8), (8, 4)))
        self.scale, self.kept = nn.Parameter(torch.tensor(1.5)), {"all": dict[str, Tensor]()}

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            if "scale" not in self.kept["all"]:
                self.kept["all"]["scale"] = self.scale.abs()
                self.last = self.scale * 2
            return self.c(self.b(self.a(x))) * self.kept["all"]["scale"]
        return self.c(self.b(self.a(x))) * self.scale.abs()


@pytest.mark.parametrize("example", [None, (torch.randn(1, 3, 8, 8),)])
def test_what_a_forward_keeps_is_not_that_of_a_trace(example: tuple[Tensor, ...] | None) -> None:
    model = binarize_(Keeping().eval(), BinaryConfig(), example)
    for tau, groups in ((2, 1), (4, 2)):  # each looks at the forward again
        wide = expand_(copy.deepcopy(model), ESConfig(tau=tau, groups=groups), example)
        assert isinstance(wide, Keeping) and wide.kept == {"all": {}} and "last" not in vars(wide)
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(wide(x), wide(x)) and isinstance(wide.kept["all"]["scale"], Tensor)
