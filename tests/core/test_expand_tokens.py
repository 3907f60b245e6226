"""expand_ on tokens: equal operations and weights in every design, by formula, packed as latent, or left by name."""

import copy
import logging
import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import (
    BinaryConfig,
    ESConfig,
    InputError,
    binarize_,
    count,
    expand_,
    pack_,
    plan_expansion,
    train_on_bits_,
)
from esbnn_core.layers import BinaryLinear, LayerScale, RSign
from esbnn_core.layers.base import binary_layers
from esbnn_core.transforms.expand_plan import Design
from tests.helpers.log import Log
from tests.helpers.tokens import swin


class Mlp(nn.Module):
    """A feed-forward part as one writes it by hand."""

    def __init__(self, width: int = 16, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.fc1 = BinaryLinear(width, 2 * width, bias, activation=RSign(width, channel_dim=-1))
        self.norm: nn.Module = nn.LayerNorm(2 * width) if norm else nn.Identity()
        self.fc2 = BinaryLinear(2 * width, width, bias, activation=RSign(2 * width, channel_dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + F.dropout(self.fc2(self.norm(F.gelu(self.fc1(x)))), 0.1, self.training)
        return out


class Gated(nn.Module):
    """Values times gates, from two layers or from two halves of one, whose widths have few common factors."""

    def __init__(self, halves: bool, hidden: int = 24) -> None:
        super().__init__()
        self.halves = halves
        self.gate = BinaryLinear(16, hidden * (1 + halves), True, activation=RSign(16, channel_dim=-1))
        self.value = nn.Identity() if halves else BinaryLinear(16, hidden, activation=RSign(16, channel_dim=-1))
        self.norm = nn.LayerNorm(hidden)
        self.out = BinaryLinear(hidden, 16, True, activation=RSign(hidden, channel_dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate(x).chunk(2, -1) if self.halves else (self.gate(x), self.value(x))
        out: Tensor = x + self.out(self.norm(F.silu(gate) * value))
        return out


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Mlp(norm=True), Mlp(bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x) if x.isfinite().all() else x
        return x


def torchs() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    return binarize_(nn.TransformerEncoder(layer, 2), BinaryConfig(filter_fn=lambda name, module: True))


def vit() -> nn.Module:
    shape = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    return binarize_(torchvision.models.VisionTransformer(image_size=16, **shape))


def timms() -> nn.Module:
    shape = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return binarize_(VisionTransformer(img_size=16, mlp_ratio=2, **shape))


TOKENS, IMAGE = (5, 16), (3, 16, 16)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "by hand": (lambda: nn.Sequential(Mlp(norm=True), Mlp(bias=False)), TOKENS, 2),
    "gated": (lambda: nn.Sequential(Gated(False), Gated(True)), TOKENS, 2),
    "untraceable": (Untraceable, TOKENS, 2),
    "torch": (torchs, TOKENS, 2),
    "torchvision": (vit, IMAGE, 2),
    "timm": (timms, IMAGE, 2),
    "swin": (lambda: binarize_(swin(1)), IMAGE, 4),
}


@torch.no_grad()
def stir(model: nn.Module) -> nn.Module:
    """Every vector away from its neutral start, in evaluation mode."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return model.eval()


# layers that the stream of design F3 reaches, of all binary ones
STREAM = {"by hand": (4, 4), "torchvision": (12, 12), "timm": (8, 8), "swin": (14, 17)}
CASES = [*((name, design) for name in NETWORKS for design in ("F1", "F2")), *((name, "F3") for name in STREAM)]


@pytest.mark.parametrize(("name", "design"), CASES)
def test_operations_and_weights_stay_and_packed_is_latent(name: str, design: Design, caplog: Log) -> None:
    torch.manual_seed(0)
    build, size, parts = NETWORKS[name]
    plain = build()
    before = count(plain, size) if name != "untraceable" else None
    x = torch.randn(2, *size)
    reached = STREAM[name][0] if design == "F3" else 5 if name == "gated" else 2 * parts
    # each network has both, in different designs
    tau, groups = ((2, 1), (4, 2))[(list(NETWORKS).index(name) + int(design[1])) % 2]
    config = ESConfig(tau, groups, 0.5, design)
    model = copy.deepcopy(plain)
    plan = plan_expansion(model, config)
    expand_(model, config)
    assert len(plan.expanded) == reached
    scales = sum(isinstance(m, LayerScale) for m in model.modules())
    assert scales == (2 if (name, design) == ("gated", "F1") else reached)
    assert len(plan.expanded) + len(plan.left) == len(binary_layers(plain))
    assert all(design in reason for reason in plan.left.values())
    assert sum(layer.weight.numel() for _, layer in binary_layers(model)) == sum(
        layer.weight.numel() for _, layer in binary_layers(plain)
    )
    if before is not None:
        after = count(model, size)
        assert (after.bops, after.flops, after.binary_params) == (before.bops, before.flops, before.binary_params)
        assert after.matmul_flops == before.matmul_flops
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # replaced layers are not missed in the first batch
        want = stir(model)(x)
        assert torch.equal(pack_(model)(x), want) and want.std() > 0
    left = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(left) == (reached < len(binary_layers(plain)))


@pytest.mark.parametrize(("name", "design"), CASES)
def test_groups_of_plain_weights_compute_the_plain_network(name: str, design: Design) -> None:
    torch.manual_seed(0)
    build, size, _ = NETWORKS[name]
    plain = stir(build())
    x = torch.randn(2, *size)
    wide = expand_(copy.deepcopy(plain), ESConfig(1, 2, design=design))
    with torch.no_grad():
        for (_, new), (_, old) in zip(binary_layers(wide), binary_layers(plain), strict=True):
            new.weight.copy_(old.weight)  # each group reads a whole copy of what the plain layer reads
        torch.testing.assert_close(wide(x), plain(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("design", ["F1", "F2"])
@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2), (1, 2), (4, 2)])
def test_the_part_by_its_formula(design: Design, tau: int, groups: int) -> None:
    torch.manual_seed(0)
    width, wide = 16, tau * groups
    model = stir(expand_(nn.Sequential(Mlp(width, norm=True)), ESConfig(tau, groups, 0.3, design)))
    part = model[0]
    layers = [m for m in part.modules() if isinstance(m, BinaryLinear)]
    scales = [m for m in part.modules() if isinstance(m, LayerScale)]

    def product(layer: BinaryLinear, x: Tensor) -> Tensor:
        weight = torch.where(layer.weight >= 0, 1.0, -1.0) * layer.weight.abs().mean(1, keepdim=True)
        signs = torch.where(x + layer.sign.shift >= 0, 1.0, -1.0)
        rows, columns = len(weight) // layer.groups, signs.shape[-1] // layer.groups
        out = [
            signs[..., i * columns : (i + 1) * columns] @ weight[i * rows : (i + 1) * rows].T
            for i in range(layer.groups)
        ]
        total = torch.cat(out, -1)
        return total if layer.bias is None else total + layer.bias

    x = torch.randn(3, 5, width)
    with torch.no_grad():
        entry = x if design == "F1" else x.repeat(1, 1, wide)
        hidden = product(layers[0], entry)
        hidden = hidden.repeat(1, 1, 2 * width * wide // hidden.shape[-1])
        hidden = F.layer_norm(F.gelu(hidden * scales[0].alpha + scales[0].move), (2 * width * wide,))
        norm = part.norm
        out = product(layers[1], hidden * norm.weight + norm.bias).repeat(1, 1, tau)
        torch.testing.assert_close(model(x), x + out * scales[1].alpha + scales[1].move, rtol=1e-4, atol=1e-4)
    assert layers[1].weight.shape == (width // tau, 2 * width * tau)
    assert layers[0].weight.shape == ((2 * width, width) if design == "F1" else (2 * width // tau, width * tau))


def test_copies_start_as_a_thermometer_and_biases_stay() -> None:
    model = nn.Sequential(Mlp(8))
    nn.init.normal_(model[0].fc2.bias)
    bias, first = model[0].fc2.bias.clone(), model[0].fc1
    part = expand_(model, ESConfig(2, 2, 0.5))[0]
    assert part.fc1[0] is first and torch.equal(part.fc2[-1].move, bias) and part.fc2[0].bias is None
    shifts = part.fc2[0].sign.shift.view(4, 16)
    assert (shifts == shifts[:, :1]).all() and (shifts[:-1, 0] > shifts[1:, 0]).all()
    assert (expand_(nn.Sequential(Mlp(8)), ESConfig(2))[0].fc2[0].sign.shift == 0).all()


def test_a_part_whose_widths_do_not_fit_is_left_by_name() -> None:
    model = nn.ModuleDict({"odd": Mlp(6), "even": Mlp(8)})
    plan = plan_expansion(Both(model), ESConfig(4))
    assert plan.expanded == ("parts.even.fc1", "parts.even.fc2")
    assert list(plan.left) == ["parts.odd.fc1", "parts.odd.fc2"]
    assert all("has a width 6, which tau*groups=4 does not divide" in reason for reason in plan.left.values())


class Both(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts["odd"](x[..., :6]).mean() + self.parts["even"](x[..., :8]).mean()
        return out


def test_gates_and_values_are_tiled_apart() -> None:
    torch.manual_seed(0)
    model = expand_(nn.Sequential(Gated(True)), ESConfig(2, design="F2")).eval()
    gate, value = model[0].gate[:-1](torch.randn(2, 5, 16)).chunk(2, -1)  # without the affine
    assert not torch.equal(gate, value)
    for half in (gate, value):
        assert torch.equal(half[..., :12], half[..., 12:])


def test_tau_and_groups_of_1_is_the_network_itself() -> None:
    model = nn.Sequential(Mlp())
    before = repr(model)
    assert expand_(model, ESConfig(1, 1)) is model and repr(model) == before


class Shared(nn.Module):
    """The second layer is called twice, or its weight is read."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.mlp, self.reads = Mlp(), reads

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        if self.reads:
            return out + self.mlp.fc2.weight.sum()
        return out + self.mlp.fc2(torch.cat([x, x], -1))


class Mixed(nn.Module):
    """A stream with a parameter of its own, and attention that may read a mask or another sequence."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads, self.entry, self.norm = reads, nn.LayerNorm(16), nn.LayerNorm(16)
        self.gamma, self.mlp = nn.Parameter(torch.rand(16)), Mlp()
        self.attention = binarize_(torch.nn.MultiheadAttention(16, 2, batch_first=True), SHIFTED)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        if self.reads == "memory":
            read = self.attention(x, key=torch.flip(x, (1,)), value=x)[0]
        else:
            mask = x.new_zeros(x.shape[0], x.shape[1]) if self.reads == "mask" else None
            read = self.attention(x, x, x, key_padding_mask=mask)[0]
        x = x + self.gamma * read
        out: Tensor = self.head(self.norm(self.mlp(x)).mean(1))
        return out


def test_the_stream_takes_parameters_along_and_stops_at_what_it_does_not_know() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    for reads, reached in (("itself", 6), ("mask", 2), ("memory", 2)):
        model = Mixed(reads)
        plan = plan_expansion(model, ESConfig(2, design="F3"))
        assert len(plan.expanded) == reached and len(plan.left) == 6 - reached
        expand_(model, ESConfig(2, design="F3"))
        assert model.gamma.shape == ((32,) if reached == 6 else (16,)) and model.gamma.requires_grad
        with torch.no_grad():
            want = stir(model)(x)
            assert torch.equal(pack_(model)(x), want)


def test_what_cannot_be_expanded_is_refused_and_the_network_is_whole() -> None:
    cases: list[tuple[nn.Module, ESConfig, str]] = [
        (nn.Sequential(Mlp(6)), ESConfig(4, 2), r"\(0.fc1: its feed-forward part has a width 12, which tau\*groups=8"),
        (binarize_(vit_without_shift(), SHIFTLESS), ESConfig(2, copy_spread=0.5), "copy_spread of layer 0 must be 0"),
        (Shared(True), ESConfig(2), "expand_ can expand no layer of Shared"),
        (Shared(False), ESConfig(2), "expand_ can expand no layer of Shared"),
        (expand_(nn.Sequential(Mlp()), ESConfig(2)), ESConfig(2), "is expanded already"),
    ]
    for model, config, message in cases:
        before = repr(model)
        with pytest.raises(InputError, match=message):
            expand_(model, config)
        assert repr(model) == before
    with pytest.raises(InputError, match="the forward of Untraceable cannot be traced"):
        expand_(Untraceable(), ESConfig(2, design="F3"))
    with pytest.raises(InputError, match=r"ESConfig\.design must be one of"):
        ESConfig(design="F4")  # type: ignore[arg-type]


SHIFTED = BinaryConfig(filter_fn=lambda name, module: True)
SHIFTLESS = BinaryConfig(shift=False, filter_fn=lambda name, module: True)


def vit_without_shift() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))


@pytest.mark.parametrize("design", ["F1", "F2", "F3"])
def test_an_expanded_vit_learns_on_bits_and_its_copies_part(design: Design) -> None:
    torch.manual_seed(0)
    model = train_on_bits_(expand_(vit(), ESConfig(2, 1, 0.0, design)).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, layer in binary_layers(model):
        if "mlp.3" in name:
            assert isinstance(layer.sign, RSign)
            one, other = layer.sign.shift.chunk(2)
            assert (one != other).float().mean() > 0.5
