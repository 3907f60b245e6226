"""binarize_ on ordinary networks: binary in every mode and packed alike, or named: ends, subclasses, constant signs."""

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from esbnn_core import BinaryConfig, InputError, binarize_, pack_
from esbnn_core.layers import BinaryConv2d, BinaryLinear
from esbnn_core.layers.base import binary_layers


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in binary_layers(model)]


def quietly(model: nn.Module, config: BinaryConfig | None = None) -> nn.Module:
    """binarize_, whose warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return binarize_(model, config)


def encoder(activation: str = "gelu") -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation=activation)
    return nn.TransformerEncoder(layer, 2)


def feed_forward(name: str, module: nn.Module) -> bool:
    return "linear" in name


def everything(name: str, module: nn.Module) -> bool:
    return True


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("taken", [feed_forward, everything])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_transformer_layer_is_binary_with_and_without_gradients(
    batch: int, taken: Callable[[str, nn.Module], bool], activation: str
) -> None:
    torch.manual_seed(0)
    model = quietly(encoder(activation), BinaryConfig(filter_fn=taken)).eval()
    assert len(names(model)) == (4 if taken is feed_forward else 12)
    x = torch.randn(batch, 5, 16)
    padding = torch.arange(5) >= torch.tensor([5, 3, 4])[:batch, None]
    for masks in ({}, {"src_key_padding_mask": padding}):
        with_gradients = model(x, **masks)
        with torch.no_grad():
            want = model(x, **masks)
        with torch.inference_mode():
            assert torch.equal(model(x, **masks), want)
        assert torch.allclose(with_gradients, want, atol=1e-5)  # real attention is fused without gradients
        other = copy.deepcopy(model)
        with torch.no_grad():
            for _, layer in binary_layers(other):  # same signs and scales, other real weights
                layer.weight.copy_(layer.weight.abs().mean(1, keepdim=True) * layer.weight.sign())
            assert torch.allclose(other(x, **masks), want, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(pack_(copy.deepcopy(model))(x, **masks), want)


def test_relu_of_torchs_transformer_layers_is_replaced() -> None:
    model = nn.ModuleList([encoder("relu"), nn.TransformerDecoderLayer(16, 2, 32)])
    quietly(model, BinaryConfig(filter_fn=everything, activation="hardtanh"))
    layers = [*model[0].layers, model[1]]
    assert all(isinstance(layer.activation, nn.Hardtanh) for layer in layers)
    kept = quietly(encoder("relu"), BinaryConfig(filter_fn=everything, activation="keep"))
    assert kept.layers[0].activation is F.relu
    with pytest.warns(
        UserWarning, match=r"2 \(layers\.0\.linear2, layers\.1\.linear2\) of 12 binary layers gave the same"
    ):
        kept(torch.randn(2, 5, 16))


@pytest.mark.parametrize("groups", [1, 2])
def test_on_the_meta_device_nothing_is_drawn(groups: int) -> None:
    def network() -> nn.Module:
        ends = nn.Conv2d(3, 8, 3), nn.Linear(16, 2)
        middle = nn.Conv2d(8, 8, 3, groups=groups), nn.ConvTranspose2d(8, 16, 2, groups=groups)
        return nn.Sequential(ends[0], *middle, nn.Flatten(2), nn.Unflatten(1, (1, 16)), encoder(), ends[1])

    torch.manual_seed(groups)
    with torch.device("meta"):
        model = network()
    before = torch.get_rng_state()
    found = binarize_(model, BinaryConfig(learned_scale=True, filter_fn=everything)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.is_meta for tensor in found.values())
    want = binarize_(network(), BinaryConfig(learned_scale=True, filter_fn=everything)).state_dict()
    assert not torch.equal(torch.get_rng_state(), before)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in want.items()}


def test_the_ends_of_a_network_with_attention_stay_real() -> None:
    inside = [f"1.layers.0.self_attn.{p}_proj" for p in ("q", "k", "v", "out")] + ["1.layers.0.linear1"]
    model = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(encoder().layers[0], 1), nn.Linear(16, 4))
    assert names(quietly(model)) == [*inside, "1.layers.0.linear2"]
    # attention that reads the input, with its out_proj, is one layer; the last linear layer makes the output
    model = quietly(nn.Sequential(nn.Identity(), nn.TransformerEncoder(encoder().layers[0], 1)))
    assert names(model) == ["1.layers.0.linear1"]
    with pytest.warns(UserWarning, match=r"cannot trace TransformerEncoder .* layers.0.self_attn and layers.1.linear2"):
        model = binarize_(encoder())  # torch.fx cannot: by the order of definition
    assert names(model) == [
        name
        for name in names(quietly(encoder(), BinaryConfig(filter_fn=everything)))
        if (not name.startswith("layers.0.self_attn") and name != "layers.1.linear2")
    ]


class OwnAttention(nn.MultiheadAttention):
    """Attention of a user, whose forward may be anything."""


def test_weights_that_attention_multiplies_by_itself_stay_real_and_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "own": OwnAttention(16, 2), "b": nn.Linear(16, 16)})
    model["c"] = nn.Linear(16, 16)
    with pytest.warns(
        UserWarning, match=r"leaves these layers real: 1 \(own\.out_proj\) whose weight another module reads"
    ):
        binarize_(model)
    assert names(model) == ["b"]


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, OwnAttention])
def test_such_a_weight_is_refused_where_it_was_asked_for(kind: type[nn.MultiheadAttention]) -> None:
    model = nn.ModuleDict({"own": kind(16, 2), "b": nn.Linear(16, 16)})
    before = {name: type(module) for name, module in model.named_modules()}
    hint = r" \(let filter_fn take own whole\)" if kind is nn.MultiheadAttention else ""
    with pytest.raises(
        InputError, match=rf"layer own\.out_proj cannot be binary, its \w+ multiplies .* without it{hint}"
    ):
        binarize_(model, BinaryConfig(filter_fn=lambda name, module: isinstance(module, nn.Linear)))
    assert {name: type(module) for name, module in model.named_modules()} == before


class Ends(nn.Module):
    """Two inputs of their own, a trunk, two heads of two kinds, a skip from the first layer to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(8, 8, 3, padding=1)  # defined first: order of definition says nothing
        self.mask = nn.Conv2d(8, 1, 1)
        self.classes = nn.Linear(8, 4)
        self.inside = nn.Linear(8, 8)
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: Tensor, depth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        start = self.left(x) + self.right(depth)
        y = self.trunk(start) + start
        return self.mask(y), {"classes": self.classes(self.inside(y.mean((2, 3))))}


class SkipToTheEnd(nn.Module):
    """The form of super-resolution: what is learned is added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 3 if i == 3 else 8, 3, padding=1) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        for layer in self.layers[1:-1]:
            y = y + layer(y)
        out: Tensor = x + self.layers[-1](y)
        return out


def test_what_reads_inputs_and_makes_outputs_stays_real() -> None:
    assert sorted(names(quietly(Ends()))) == ["inside", "trunk"]
    assert names(quietly(SkipToTheEnd())) == ["layers.1", "layers.2"]
    # three kinds of first and last layers
    mixed = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.warns(UserWarning, match="leaves these layers real: 1 Conv1d"):
        binarize_(mixed)
    assert names(mixed) == ["2", "3"]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        if float(y.detach().sum()) > -1:
            y = self.b(y)
        out: Tensor = self.head(F.conv2d(y, self.c.weight).mean((2, 3)))
        return out


def test_the_first_batch_shows_what_a_trace_cannot() -> None:
    with pytest.warns(UserWarning, match=r"cannot trace Untraceable with torch.fx, so that a and head stay real"):
        model = binarize_(Untraceable())
    assert names(model) == ["b", "c"]
    buffer = io.BytesIO()
    torch.save(model, buffer)  # a watched network is an ordinary object
    with pytest.warns(UserWarning) as warned:
        model(torch.randn(2, 3, 9, 9))
    texts = [str(w.message) for w in warned]
    assert len(texts) == 2 and texts[0].startswith("1 (b) of 2 binary layers gave the same sign everywhere")
    assert texts[1].startswith("1 (c) of 2 binary layers did not run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        model(torch.randn(2, 3, 9, 9))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_watched_network_exports_and_compiles() -> None:
    model = quietly(nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3)))).eval()
    x = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()(x)
        compiled = torch.compile(model, backend="eager")(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)  # of two recordings that differ
            warnings.simplefilter("ignore", FutureWarning)
            traced = torch.jit.trace(model, x)(x)
        assert all(torch.equal(got, model(x)) for got in (exported, compiled, traced))


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize(("activation", "want"), [("prelu", nn.PReLU), ("hardtanh", nn.Hardtanh)])
def test_activations_without_negative_values_are_replaced(act: type[nn.Module], activation: str, want: type) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), act(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), act(), nn.Conv2d(4, 2, 3))
    quietly(model, BinaryConfig(activation=activation))  # type: ignore[arg-type]
    assert type(model[1]) is type(model[4]) is want


class Functional(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.form == "relu":
            y = F.max_pool2d(F.relu(y), 2)
        elif self.form == "method":
            y = y.relu_() + y.abs()
        elif self.form == "clamp":
            y = y.clamp(min=0) * torch.sigmoid(y)
        elif self.form == "module":
            y = self.softplus(y)
        elif self.form == "negative":
            y = F.relu(y) - 0.5
        elif self.form == "gelu":
            y = F.gelu(y)
        out: Tensor = self.c(self.b(y))
        return out


@pytest.mark.parametrize(
    ("form", "source"),
    [
        ("relu", "a call of relu"),
        ("method", "a call of relu"),
        ("clamp", "a call of clamp"),
        ("module", r"softplus \(Softplus\)"),
        ("negative", None),
        ("gelu", None),
        ("none", None),
    ],
)
def test_signs_that_are_constant_are_named_at_once(form: str, source: str | None) -> None:
    if source is None:
        quietly(Functional(form))
        return
    with pytest.warns(UserWarning, match=rf"1 \(b\) of the binary layers have an input that is never neg.*{source}"):
        model = binarize_(Functional(form))
    assert names(model) == ["b"]
    with torch.no_grad():
        x = model.a(torch.randn(2, 3, 9, 9))
        inside: list[Tensor] = []
        model.b.sign.register_forward_hook(lambda _, given, out: inside.append(out))
        model(torch.randn(2, 3, 9, 9))
    assert (inside[0] == 1).all() and x.min() < 0


class Products(nn.Module):
    """A block with a weight of its own and a function in front of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.after = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.after(F.relu(self.inner(x))), self.weight)


def test_calls_are_named_with_the_module_that_makes_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Products(), nn.Sequential(Products()), nn.Conv2d(4, 2, 1))
    with pytest.warns(UserWarning) as given:
        binarize_(model)
    positive, real = sorted(str(warning.message) for warning in given)
    assert positive.startswith("2 (1.after, 2.0.after) of the binary layers have an input that is never negative")
    line = f"{__file__}:{Products.forward.__code__.co_firstlineno + 1}"
    assert f"1.after follows a call of relu in 1 (Products), {line}: replace it" in positive
    calls = f"2 (conv2d of 1.weight in 1 (Products), {line}, conv2d of 2.0.weight in 2.0 (Products), {line})"
    assert real.startswith(f"binarize_ leaves these calls real: {calls}: make each an nn.Conv2d")


def test_a_network_of_any_depth_is_looked_at() -> None:
    layers = (layer for _ in range(600) for layer in (nn.Conv2d(2, 2, 1), nn.Softplus()))
    with pytest.warns(UserWarning, match=r"598 .* have an input that is never negative.*1 \(Softplus\)"):
        assert len(names(binarize_(nn.Sequential(*layers)))) == 598


@pytest.mark.parametrize("kind", [Conv2dSame, StdConv2d])
def test_a_subclass_with_a_forward_of_its_own_is_refused_by_name(kind: type[nn.Conv2d]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))
    x = torch.randn(1, 3, 16, 16)
    before = model(x)
    with pytest.raises(InputError, match=rf"1 \(1\) of the layers are of the subclass {kind.__name__}"):
        binarize_(model)
    assert torch.equal(model(x), before)
    quietly(model, BinaryConfig(filter_fn=lambda name, module: name == "2"))
    assert names(model) == ["2"] and model(x).shape == before.shape


class OnlyNamed(nn.Conv2d):
    """A subclass that computes what its parent does."""


def test_a_subclass_without_a_forward_of_its_own_is_binarized() -> None:
    model = quietly(nn.Sequential(nn.Conv2d(3, 4, 3), OnlyNamed(4, 4, 3), nn.Conv2d(4, 2, 3)))
    assert isinstance(model[1], BinaryConv2d)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: weight_norm(layer),
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: parametrizations.spectral_norm(layer),
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_weight_that_is_computed_is_refused_by_name(change: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), change(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(InputError, match="layer 1 has a weight that is computed from other tensors"):
        binarize_(model)


def test_other_kinds_of_convolutions_are_named() -> None:
    steps = (
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(2),
        nn.ConvTranspose1d(4, 4, 3),
        nn.Unflatten(2, (2, -1)),
    )
    with pytest.warns(UserWarning, match="leaves these layers real: 1 ConvTranspose1d"):
        binarize_(nn.Sequential(*steps, nn.Conv2d(4, 2, 1)))
    with pytest.raises(InputError, match=r"found no nn\.Conv2d, .* or nn\.Linear to binarize: it has 2 Conv3d"):
        binarize_(nn.Sequential(nn.Conv3d(2, 2, 1), nn.Conv3d(2, 2, 1)))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3), nn.Linear(4, 4), nn.ConvTranspose2d(4, 6, 3, 2), nn.MultiheadAttention(8, 2)]
)
def test_a_layer_by_itself_is_meant(layer: nn.Module) -> None:
    assert not [*binary_layers(layer)]
    assert [*binary_layers(quietly(layer))]


def test_a_bare_layer_can_be_binarized() -> None:
    layer = quietly(nn.Linear(4, 4), BinaryConfig(filter_fn=lambda name, module: True))
    assert isinstance(layer, BinaryLinear) and layer(torch.randn(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("kernel, dilation", [(3, 1), ((5, 3), (1, 2)), (1, 1)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings_are_those_of_the_real_layer(
    padding: str, kernel: int | tuple[int, int], dilation: int | tuple[int, int]
) -> None:
    real = nn.Conv2d(4, 6, kernel, padding=padding, dilation=dilation)  # type: ignore[arg-type]
    binary = binarize_(nn.Sequential(copy.deepcopy(real)), BinaryConfig(filter_fn=everything))
    x = torch.randn(1, 4, 9, 9)
    assert binary(x).shape == real(x).shape


def test_a_padding_with_two_different_sides_is_named() -> None:
    with pytest.raises(InputError, match="padding of layer 0 must be a number in mode 'zeros', got 'same'"):
        binarize_(nn.Sequential(nn.Conv2d(4, 6, 4, padding="same")), BinaryConfig(filter_fn=everything))
