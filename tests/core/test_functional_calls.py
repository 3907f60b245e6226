"""Functions in a forward that make signs constant, or multiply by a layer's weight: named with file and line."""

import operator
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import BinaryConfig, InputError, binarize_
from esbnn_core.layers.base import binary_layers

Call = Callable[[Tensor], Tensor]


class Called(nn.Module):
    """A convolution, a function of a test, and two more convolutions."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.call(self.a(x))))
        return out


def warnings_of(model: nn.Module, config: BinaryConfig | None = None) -> list[str]:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", UserWarning)  # none of what the collector finds of other tests
        warnings.simplefilter("ignore", ResourceWarning)
        binarize_(model, config)
    return [str(warning.message) for warning in given]


POSITIVE: list[tuple[str, Call]] = [
    ("relu", lambda y: F.relu(y)),
    ("relu", lambda y: F.relu(y, inplace=True)),
    ("relu", lambda y: F.relu_(y)),
    ("relu6", lambda y: F.relu6(y)),
    ("hardtanh", lambda y: F.hardtanh(y, 0.0, 6.0)),
    ("hardtanh", lambda y: F.hardtanh(y, min_val=0, max_val=1)),
    ("relu", lambda y: torch.relu(y)),
    ("relu", lambda y: torch.relu_(y)),
    ("relu", lambda y: y.relu()),
    ("relu", lambda y: y.relu_()),
    ("clamp", lambda y: y.clamp(min=0)),
    ("clamp", lambda y: y.clamp(0, 1)),
    ("clamp", lambda y: y.clamp_(min=0.5)),
    ("clamp", lambda y: torch.clamp(y, min=0)),
    ("clamp_min", lambda y: y.clamp_min(0)),
    ("clip", lambda y: y.clip(min=0)),
    ("threshold", lambda y: F.threshold(y, 0.1, 0.0)),
    ("softplus", lambda y: F.softplus(y)),
    ("sigmoid", lambda y: torch.sigmoid(y)),
    ("hardsigmoid", lambda y: F.hardsigmoid(y)),
    ("softmax", lambda y: y.softmax(1)),
    ("abs", lambda y: abs(y)),
    ("pow", lambda y: y**2),
    ("mul", lambda y: y * y),
    ("relu", lambda y: F.max_pool2d(F.relu(y), 2)),
    ("relu", lambda y: F.interpolate(y.relu(), scale_factor=2)[:, :4] * 0.5),
    ("relu", lambda y: torch.cat([y.relu(), y.abs()], 1)[:, :4]),
]
MAYBE_NEGATIVE: list[Call] = [
    lambda y: F.hardtanh(y),
    lambda y: F.hardtanh(y, -1.0, 6.0),
    lambda y: y.clamp(max=1),
    lambda y: y.clamp(-1, 1),
    lambda y: F.threshold(y, 0.1, -1.0),
    lambda y: F.threshold(y, -0.1, 0.0),
    lambda y: F.leaky_relu(y),
    lambda y: F.gelu(y),
    lambda y: y**3,
    lambda y: F.relu(y) - 0.5,
    lambda y: F.relu(y) + y,
    lambda y: torch.cat([y.relu(), y], 1)[:, 2:6],
    lambda y: operator.neg(y.relu()),
]


@pytest.mark.parametrize(("name", "call"), POSITIVE)
def test_a_call_that_makes_signs_constant_is_named_with_its_line(name: str, call: Call) -> None:
    model = Called(call)
    (text,) = warnings_of(model)
    line = f"{__file__}:{call.__code__.co_firstlineno}"
    assert text.startswith("1 (b) of the binary layers have an input that is never negative"), text
    assert f"b follows a call of {name}, {line}: replace it by a module" in text, text
    signs: list[Tensor] = []
    model.b.sign.register_forward_hook(lambda _, given, out: signs.append(out))
    model(torch.randn(2, 3, 9, 9))
    assert (signs[0] == 1).all()


@pytest.mark.parametrize("call", MAYBE_NEGATIVE)
def test_a_call_that_leaves_negative_values_is_not(call: Call) -> None:
    model = Called(call)
    assert warnings_of(model) == []
    signs: list[Tensor] = []
    model.b.sign.register_forward_hook(lambda _, given, out: signs.append(out))
    model(torch.randn(2, 3, 9, 9))
    assert (signs[0] == -1).any()


class Stages(nn.Module):
    """The same call in two blocks, and another one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Called(F.relu6), Called(F.relu6))
        self.first, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(2, 2, 1)
        self.blocks[1].a = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.first(x))
        out: Tensor = self.last(torch.relu(x))
        return out


def test_every_line_is_named_once_with_the_layers_after_it() -> None:
    (text,) = warnings_of(Stages(), BinaryConfig(filter_fn=lambda name, module: name != "first"))
    inner, outer = Called.forward.__code__.co_firstlineno + 1, Stages.forward.__code__.co_firstlineno + 2
    assert text.startswith("3 (blocks.0.b, blocks.1.b, last) of the binary layers"), text
    first = f"blocks.0.b follows a call of relu6 in blocks.0 (Called), {__file__}:{inner}"
    assert f"{first}; last follows a call of relu, {__file__}:{outer}: replace it" in text, text


def test_a_library_s_line_is_named() -> None:
    net = torchvision.models.googlenet(num_classes=5, weights=None, init_weights=False, aux_logits=False)
    (text,) = warnings_of(net)
    assert text.startswith("56 (conv2.conv, conv3.conv, inception3a.branch1.conv")
    assert "conv2.conv follows a call of relu in conv1 (BasicConv2d), " in text
    path, line = text.partition("(BasicConv2d), ")[2].split(": ")[0].rsplit(":", 1)
    with open(path) as file:
        assert "F.relu(" in file.read().splitlines()[int(line) - 1]


class Reads(nn.Module):
    """Products with the weights of two layers, in the forward of the module around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        self.conv, self.linear, self.up = nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.ConvTranspose2d(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.first(x), self.conv.weight, self.conv.bias)
        y = F.conv_transpose2d(y, self.up.weight)
        y = F.linear(y.mean((2, 3)), self.linear.weight)
        out: Tensor = self.last(y)
        return out


def test_a_weight_that_a_function_reads_is_named_with_its_line() -> None:
    line = Reads.forward.__code__.co_firstlineno
    spare = nn.Sequential(Reads(), nn.Linear(2, 2), nn.Linear(2, 2))
    (text,) = warnings_of(spare)
    assert text.startswith("binarize_ leaves these layers real: 3 (0.conv, 0.linear, 0.up) whose weight another module")
    assert f"(0.conv, because the forward of another module reads 0.conv.weight, {__file__}:{line + 1})" in text, text
    assert [name for name, _ in binary_layers(spare)] == ["0.last", "1"]
    for at, name in ((1, "conv"), (2, "up"), (3, "linear")):
        with pytest.raises(InputError, match=rf"reads {name}\.weight, .*:{line + at}: leave it out with filter_fn"):
            binarize_(Reads(), BinaryConfig(filter_fn=lambda each, module, name=name: each == name))  # type: ignore[misc]


class Branches(nn.Module):
    """A forward that depends on values: no trace sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Called(lambda y: y.clamp(min=0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) if float(x.sum()) < 1e9 else x
        return out


def test_the_first_batch_names_what_a_trace_does_not_see() -> None:
    model = Branches()
    (untraced,) = warnings_of(model)
    assert "binarize_ cannot trace Branches" in untraced and "constant" not in untraced
    with pytest.warns(UserWarning, match=r"1 \(inner\.b\) of 1 binary layers gave the same sign everywhere"):
        model(torch.randn(2, 3, 9, 9))
