"""Training on bits against the plain layers: outputs, gradients, statistics, dtypes and whole runs."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import (
    TrainOnBits,
    bit_training_report,
    create_model,
    train_on_bits_,
    train_plain_,
)
from esbnn_core.layers import BinaryConv2d, BinaryLinear, ESBinaryConv2d, RSign
from esbnn_core.layers.quantizers import AbsMean
from esbnn_core.training.on_bits import rows
from esbnn_core.units import BinaryUnit, UnitStyle
from esbnn_core.units.token import TokenUnit
from tests.helpers.bit_training import compare, on_bits, run, unit_of
from tests.helpers.units import OPTIONS, randn, relative

GRID: list[dict[str, Any]] = [
    *(options for options in OPTIONS if "bias" not in options),
    {"weight_quantizer": "recu", "ste": "tent", "act": "hardtanh", "learned_scale": True},
    {"weight_quantizer": "recu", "ste": "tent", "tau": 2, "act": "prelu"},
    {"weight_quantizer": "absmean_attached", "pad_value": -1, "stride": 2, "act": "hardtanh", "padding": 2},
    {"weight_quantizer": "absmean_centred", "ste": "clip", "act": "none", "shift": False, "padding": 0, "stride": 2},
    {"ste": "clip", "clip": 1.2, "act": "none", "inner_act": True, "tau": 2, "groups": 2, "pad_value": -1},
    {"ste": "identity", "act": "rprelu", "weight_quantizer": "sign", "dilation": 2, "padding": 2},
    {"ste": "identity", "act": "none", "shift": False, "tau": 2, "norm": False},
    {"ste": "clip", "act": "rprelu", "groups": 4, "kernel_size": 5, "stride": 2, "inner_act": True},
]


def real_shortcut(stride: int) -> nn.Module:
    """Something with parameters of its own that maps x to the shape of y of a plain 8 -> 8 unit."""
    return nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))


@pytest.mark.parametrize("keep_sums", [False, True], ids=["again", "kept"])
@pytest.mark.parametrize("options", GRID, ids=str)
def test_a_unit_gives_the_plain_units_gradients(
    options: dict[str, Any], keep_sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keep_sums:
        monkeypatch.setattr(rows, "PIECE", 150)  # many pieces, the last one short
    unit = unit_of(options)
    x = randn(3, 8 * unit.tau * unit.groups, 7, 5, seed=7)
    single = copy.deepcopy(unit).float()  # before the plain one moves its statistics
    twin = on_bits(unit, TrainOnBits(keep_sums))
    single = on_bits(single, TrainOnBits(keep_sums))
    want = run(unit, x)
    compare(run(twin, x), want, 1e-12)
    exact = copy.deepcopy(single).double()
    compare(run(single, x.float()), run(train_plain_(exact), x.float().double()), 1e-6)


def test_a_unit_whose_convolution_has_a_bias_takes_its_sums_alone_from_bits() -> None:
    (options,) = (options for options in OPTIONS if "bias" in options)
    unit = unit_of(options)
    x = randn(3, 8 * unit.tau * unit.groups, 7, 5, seed=7)
    twin = copy.deepcopy(unit)
    with pytest.warns(
        UserWarning, match="only its convolution runs on bits, its convolution must be a BinaryConv2d without bias"
    ):
        train_on_bits_(twin)
    compare(run(twin, x), run(unit, x), 1e-12)


@pytest.mark.parametrize("ste", ["poly2", "clip"])
@pytest.mark.parametrize("shift", [None, 0.0, -0.0])
def test_zeros_of_both_signs_are_plus_one(shift: float | None, ste: str) -> None:
    unit = unit_of({"shift": shift is not None, "ste": ste})
    if shift is not None:
        nn.init.constant_(unit.conv.sign.shift, shift)
    x = randn(2, 8, 6, 6, seed=1)
    x[x.abs() < 0.4] = 0.0
    x[:, ::2] *= -1
    assert (x == 0).sum() > 100 and (x[x == 0].signbit()).any()
    twin = on_bits(unit)
    compare(run(twin, x), run(unit, x), 1e-12)


@pytest.mark.parametrize("act", ["rprelu", "prelu", "hardtanh", "none"])
@pytest.mark.parametrize("ste", ["poly2", "clip"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_shortcut_with_parameters(act: str, ste: str, stride: int) -> None:
    unit = unit_of({"act": act, "ste": ste, "stride": stride, "inner_act": stride == 1})
    torch.manual_seed(3)
    unit.shortcut = real_shortcut(stride).double()
    x = randn(3, 8, 7, 6, seed=7)
    twin = on_bits(unit)
    compare(run(twin, x), run(unit, x), 1e-12)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "cumulative": lambda: nn.BatchNorm2d(16, 0.3, momentum=None),
    "no affine": lambda: nn.BatchNorm2d(16, 0.3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(16, 0.3, track_running_stats=False),
    "frozen": lambda: nn.BatchNorm2d(16).eval(),
    "slow": lambda: nn.BatchNorm2d(16, 0.1, momentum=0.01),
    "none": nn.Identity,
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_of_every_kind_keep_their_statistics_over_steps(kind: str) -> None:
    unit = unit_of({"tau": 2, "learned_scale": True, "weight_quantizer": "sign"})
    unit.norm = NORMS[kind]().double()
    twin = on_bits(unit)
    assert isinstance(twin, BinaryUnit)
    for seed in range(3):
        x = randn(2, 16, 5, 4, seed=seed)
        want = run(unit, x)
        compare(run(twin, x), want, 1e-12)
    if isinstance(unit.norm, nn.BatchNorm2d) and unit.norm.training and unit.norm.running_var is not None:
        assert unit.norm.num_batches_tracked == 3 and relative(unit.norm.running_var, torch.ones(16).double()) > 0.01


def test_a_large_mean_takes_no_digits_from_the_variance() -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(512, 8, style=UnitStyle(latent_init="kaiming", act="none")).train()
    with torch.no_grad():
        unit.conv.weight.abs_()
    x = torch.randn(2, 512, 9, 9) + 3  # nearly all +1: sums near 4608, of which some hundred are noise
    exact = copy.deepcopy(unit).double()
    single, want = run(on_bits(unit), x), run(exact, x.double())
    for name in ("norm.running_mean", "norm.running_var"):
        assert relative(single[name].double(), want[name]) <= 1e-6
    assert relative(single["y"].double(), want["y"]) <= 2e-6


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: BinaryConv2d(6, 4, 3, 2, 1, pad_value=-1, bias=True, groups=2), (2, 6, 7, 5)),
    "es conv": (lambda: ESBinaryConv2d(4, 4, 3, 1, 1, tau=2, copy_spread=0.7, learned_scale=True), (2, 8, 5, 6)),
    "+-1 input": (lambda: BinaryConv2d(6, 4, 3, 1, 1, activation=None, dilation=2), (2, 6, 7, 5)),
    "linear": (lambda: BinaryLinear(40, 6, True, groups=2, activation=RSign(40, "clip", channel_dim=-1)), (2, 3, 40)),
    "wide linear": (lambda: BinaryLinear(70, 5, weight_quantizer="absmean_centred"), (7, 70)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_bare_layers(kind: str) -> None:
    torch.manual_seed(1)
    make, shape = LAYERS[kind]
    layer = make().double()
    x = randn(*shape, seed=2)
    x = x.sign() if isinstance(layer.sign, nn.Identity) else x
    compare(run(on_bits(layer), x), run(layer, x), 1e-12)


def test_the_linear_layer_of_a_token_unit() -> None:
    torch.manual_seed(1)
    unit = TokenUnit(24, 8, copies=4, copy_spread=0.5, in_copies=2).double()
    x, skip = randn(3, 5, 24, seed=2), randn(3, 5, 32, seed=3)
    twin = on_bits(unit)
    assert bit_training_report(twin) == {"linear": ""}
    compare(run(twin, x, skip), run(unit, x, skip), 1e-12)


class Outside(nn.Module):
    """A unit of which all signs are taken outside the reach of their estimators."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        options = {"ste": "clip", "clip": 0.5, "weight_quantizer": partial(AbsMean, "clip", False), **options}
        self.unit = unit_of(options)
        with torch.no_grad():
            weight = self.unit.conv.weight
            weight.copy_(weight.sign() * (1.5 + 0.2 * randn(*weight.shape, seed=4).abs()))
            self.unit.conv.sign.shift.mul_(0.1)


@pytest.mark.parametrize("options", [{"tau": 2}, {"inner_act": True, "groups": 2}, {"ste": "poly2", "act": "prelu"}])
def test_gradcheck_where_a_sign_is_a_constant(options: dict[str, Any]) -> None:
    """There finite differences and estimators agree that it has no slope: every other path is checked, x's and the
    weight's through scale and residual too."""
    unit = on_bits(Outside(options).unit)
    assert isinstance(unit, BinaryUnit)
    unit.norm.track_running_stats = False
    x = randn(2, 8 * unit.tau * unit.groups, 3, 3, seed=5)
    x = (x.sign() * (1.6 + x.abs())).requires_grad_()
    parameters = dict(unit.named_parameters())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(unit, dict(zip(parameters, values, strict=True)), (x,))
        return out

    assert torch.autograd.gradcheck(function, (x, *parameters.values()), fast_mode=True)
    y = function(x, *parameters.values())
    assert y.grad_fn is not None and "UnitOnBits" in y.grad_fn.name()


AUTOCAST = [{}, {"tau": 2, "act": "prelu"}, {"inner_act": True, "act": "none", "weight_quantizer": "temperature"}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", AUTOCAST, ids=str)
def test_autocast_keeps_the_plain_dtypes_and_is_as_near_to_the_truth(options: dict[str, Any], dtype: Any) -> None:
    unit = unit_of(options).float()
    x = randn(4, 8 * unit.tau, 6, 6, seed=7).float()
    truth = run(copy.deepcopy(unit).double(), x.double())
    twin = on_bits(unit)
    with torch.autocast("cpu", dtype):
        want, got = run(unit, x), run(twin, x)
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in want.items()}
    for name in truth:
        if truth[name].is_floating_point() and truth[name].numel() > 1:
            error, plain = (relative(side[name].double(), truth[name]) for side in (got, want))
            # both round their gradients to the narrow type; what comes before that is exact on bits
            slack = torch.finfo(dtype).eps if name.startswith("gradient") else 1e-6
            assert error <= max(plain, slack), name
    assert got["y"].dtype == want["y"].dtype and relative(got["y"].double(), truth["y"]) < 0.02


def test_the_narrow_types_of_a_whole_module_are_kept() -> None:
    unit = unit_of({"tau": 2}).bfloat16()
    x = randn(2, 16, 5, 5, seed=3).bfloat16()
    want, got = run(unit, x), run(on_bits(unit), x)
    assert {v.dtype for v in got.values()} == {v.dtype for v in want.values()}
    # float32 inside, rounded once, beside a plain unit that rounds every step
    assert relative(got["y"].double(), want["y"].double()) < 0.05


@pytest.mark.parametrize("name", ["reactnet_resnet8", "es_reactnet_resnet8", "es_recu_resnet20"])
def test_a_run_is_the_plain_run(name: str) -> None:
    torch.manual_seed(0)
    plain = create_model(name).double()
    twin = on_bits(plain)
    x, labels = randn(6, 3, 16, 16, seed=1), torch.arange(6)
    losses: list[list[float]] = []
    for model in (plain, twin):
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-3)
        losses.append([])
        for _ in range(4):
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][0] - losses[0][-1] > 0.1
    for (key, value), other in zip(plain.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(value.double(), other.double(), rtol=1e-7, atol=1e-9), key
