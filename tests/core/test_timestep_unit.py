"""TimestepUnit: its formula, one group a sample, exact sums outside training, training on bits, costs, errors."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import InputError, bit_training_report, count, train_on_bits_
from esbnn_core.checkpoint.format import load_state, read_checkpoint, save_checkpoint
from esbnn_core.kernels import ConvCall, Epilogue, Geometry, reference
from esbnn_core.layers import Expansion, Tile, TimestepRPReLU, TimestepShift, timestep_group
from esbnn_core.layers.base import binary_layers
from esbnn_core.units.timestep import TimestepUnit
from tests.helpers.options import expansion_options
from tests.helpers.units import randn, relative

OPTIONS: list[dict[str, Any]] = [
    {},
    {"kernel_size": 1, "timestep_groups": 2},
    {"tau": 2},
    {"tau": 2, "groups": 2, "timestep_groups": 3},
    {"residual": "before_act", "timestep_groups": 1},
    {"residual": "none", "tau": 4},
    {"shift": False, "act": "none"},
    {"shift": False, "act": "none", "residual": "none", "ste": "clip", "weight_quantizer": "sign"},
]


def build(options: dict[str, Any], channels: int = 8) -> TimestepUnit:
    """A float64 unit whose every parameter matters."""
    torch.manual_seed(0)
    unit = TimestepUnit(channels, latent_init="kaiming", **expansion_options(**options)).double()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(unit.named_parameters()):
            if name != "conv.weight":
                parameter.copy_(0.4 * randn(*parameter.shape, seed=seed) + 0.2)
    return unit


def groups_of(unit: TimestepUnit) -> Tensor:
    """Four samples, the first and the last of one group, the others of others where there are any."""
    last = unit.timestep_groups - 1
    return torch.tensor([last, 0, last // 2, last])


def batch_for(unit: TimestepUnit, size: tuple[int, int] = (7, 5)) -> Tensor:
    return randn(4, 8 * unit.tau * unit.groups, *size, seed=7)


def by_hand(unit: TimestepUnit, x: Tensor, group: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """The formula, one sample after the other, differentiable with the estimators of the options."""
    w = parameters["conv.weight"]
    weight = torch.where(w.detach() >= 0, 1.0, -1.0).double() + w.clamp(-1, 1) - w.clamp(-1, 1).detach()
    scale = w.detach().abs().mean((1, 2, 3)) if unit.conv.quantizer.scale(w) is not None else torch.ones(len(w))
    done = []
    for sample, k in zip(x, group.tolist(), strict=True):

        def of(name: str, k: int = k) -> Tensor:
            return parameters[f"{name}.{k}"].view(-1, 1, 1)

        a = sample + of("shift.shifts") if unit.shift is not None else sample
        inner = torch.where(a < 0, a * a + 2 * a, 2 * a - a * a)
        poly2 = unit.conv.sign.ste == "poly2"
        surrogate = torch.where(a.abs() < 1, inner, a.sign()) if poly2 else a.clamp(-1, 1)
        signs = torch.where(a.detach() >= 0, 1.0, -1.0).double() + surrogate - surrogate.detach()
        y = F.conv2d(signs, weight, None, 1, unit.conv.kernel_size[0] // 2, 1, unit.groups) * scale.view(-1, 1, 1)
        y = torch.cat([y] * (unit.tau**2 * unit.groups))
        if unit.residual == "before_act":
            y = y + sample
        if unit.act is not None:
            y = y + of("act.shifts_in")
            y = torch.where(y > 0, y, of("act.slopes") * y) + of("act.shifts_out")
        done.append(y + sample if unit.residual == "after_act" else y)
    return torch.stack(done)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_output_and_gradients_are_those_of_the_formula(options: dict[str, Any], training: bool) -> None:
    unit = build(options).train(training)
    x = batch_for(unit).requires_grad_()
    other = x.detach().clone().requires_grad_()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in unit.named_parameters()}
    group = groups_of(unit)
    want = by_hand(unit, other, group, parameters)
    upstream = randn(*want.shape, seed=8)
    want.backward(upstream)
    got = unit(x, group)
    got.backward(upstream)
    assert relative(got, want) < 1e-12
    assert relative(x.grad, other.grad) < 1e-12
    met = {str(k) for k in group.tolist()}
    for name, parameter in unit.named_parameters():
        if name == "conv.weight" or name.rpartition(".")[2] in met:
            assert relative(parameter.grad, parameters[name].grad) < 1e-12, name
        else:  # a group that no sample is in
            assert parameters[name].grad is None and not parameter.grad.any(), name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_sample_does_not_see_the_others_and_one_group_serves_a_whole_batch(options: dict[str, Any]) -> None:
    unit = build(options).float()
    x, group = batch_for(unit, (6, 9)).float(), groups_of(unit)
    together = unit(x, group)
    for i in range(len(x)):
        assert torch.equal(together[i : i + 1], unit(x[i : i + 1], group[i : i + 1]))
    shared = torch.full((4,), int(group[2]))
    assert torch.equal(unit(x, shared), unit(x, shared[:1]))
    if unit.timestep_groups > 1 and (unit.shift is not None or unit.act is not None):
        assert not torch.equal(unit(x, shared), together)


@pytest.mark.parametrize("size", [(6, 6), (1, 5)])
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("residual") != "none" and "act" not in o], ids=str)
def test_evaluation_is_the_packed_operators_arithmetic(options: dict[str, Any], size: tuple[int, int]) -> None:
    """Exact whole sums from bits, then scale, shift_in, slope, x and shift_out in this order, equal in every bit."""
    unit = build(options).float().eval()
    x, group = batch_for(unit, size).float(), groups_of(unit)
    (weight,) = (layer.weight for _, layer in binary_layers(unit))
    bits = reference.pack_bits(weight.movedim(1, -1) >= 0)
    scale, pad = weight.flatten(1).abs().mean(1).repeat(unit.copies), (unit.conv.kernel_size[0] // 2,) * 2
    neutral = torch.stack([torch.zeros_like(scale), torch.ones_like(scale)])
    for i, k in enumerate(group.tolist()):
        assert unit.shift is not None and unit.act is not None
        one = x[i : i + 1]
        packed = reference.pack_sign(one, unit.shift.shifts[k], unit.groups, 1)
        geometry = Geometry(x.shape[1], padding=pad, groups=unit.groups)
        total = reference.conv2d_sum(ConvCall(packed, bits, geometry))
        ends = (unit.act.shifts_in[k], unit.act.slopes[k], unit.act.shifts_out[k])
        if unit.residual == "before_act":
            want = reference.finish(total, 1, Epilogue(scale, torch.zeros_like(scale), None, one, torch.stack(ends)))
        else:
            last = torch.cat([neutral, ends[2][None]])
            want = reference.finish(total, unit.copies, Epilogue(scale, ends[0], ends[1], one, last))
        assert torch.equal(unit(one, group[i : i + 1]), want)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_on_bits_gives_the_plain_units_gradients(options: dict[str, Any]) -> None:
    unit = build(options).train()
    twin = train_on_bits_(nn.Sequential(copy.deepcopy(unit)))[0]
    assert bit_training_report(twin) == {"conv": ""}
    results = []
    for one in (unit, twin):
        x = batch_for(unit).requires_grad_()
        y = one(x, groups_of(unit))
        y.backward(randn(*y.shape, seed=8))
        results.append({"y": y, "x": x.grad, **{name: p.grad for name, p in one.named_parameters()}})
    assert results[1]["y"].grad_fn is not None
    for name, want in results[0].items():
        got = results[1][name]
        assert relative(got, want) < 1e-12 if want.any() else not got.any(), name


def test_the_sums_of_training_on_bits_come_from_the_layers_path() -> None:
    unit = train_on_bits_(build({"tau": 2}).train())
    path, calls = unit.conv.training_path, []

    def spy(layer: nn.Module, x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        y: Tensor = path(layer, x)
        return y

    unit.conv.training_path = spy
    unit(batch_for(unit), groups_of(unit))
    assert calls == [(4, 16, 7, 5)]
    unit.eval()(batch_for(unit), groups_of(unit))
    assert len(calls) == 1


class _Alone(nn.Module):
    def __init__(self, unit: TimestepUnit) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.unit(x, torch.zeros(1, dtype=torch.long, device=x.device))
        return y


@pytest.mark.parametrize(("tau", "groups"), [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (4, 2)])
def test_weights_and_operations_do_not_depend_on_tau_and_groups(tau: int, groups: int) -> None:
    unit = TimestepUnit(16, expansion=Expansion(tau, groups))
    carried = 16 * tau * groups
    cost = count(_Alone(unit), (carried, 6, 5))
    assert (cost.bops, cost.flops, cost.binary_params) == (16 * 16 * 9 * 30, 0, 16 * 16 * 9)
    assert cost.params - cost.binary_params == 5 * 4 * carried
    assert unit.copies == tau * tau * groups and isinstance(unit.tile, Tile) == (unit.copies > 1)


def test_names_starts_and_the_file(tmp_path: Path) -> None:
    unit, other = (TimestepUnit(8, timestep_groups=2) for _ in range(2))
    ends = ("shift.shifts", "act.shifts_in", "act.slopes", "act.shifts_out")
    assert set(unit.state_dict()) == {"conv.weight", *(f"{end}.{k}" for end in ends for k in range(2))}
    assert [name for name, _ in binary_layers(unit)] == ["conv"]
    for k in range(2):
        assert not unit.shift.shifts[k].any() and not unit.act.shifts_in[k].any() and not unit.act.shifts_out[k].any()
        assert torch.equal(unit.act.slopes[k], torch.full((8,), 0.25))
    nn.init.normal_(unit.act.slopes[1])
    save_checkpoint(unit, tmp_path / "unit.safetensors")
    load_state(other, read_checkpoint(tmp_path / "unit.safetensors").tensors, "unit.safetensors")
    x = batch_for(unit).float()
    assert torch.equal(unit(x, torch.tensor([1])), other(x, torch.tensor([1])))


def test_a_spread_starts_the_copies_of_every_group_apart() -> None:
    unit = TimestepUnit(8, expansion=Expansion(2, copy_spread=0.5), timestep_groups=3)
    assert unit.shift is not None
    for shift in unit.shift.shifts:
        copies = shift.detach().view(4, 4)
        assert torch.equal(copies, copies[:, :1].expand(4, 4))
        assert (copies[:-1, 0] > copies[1:, 0]).all() and copies.sum().abs() < 1e-5


@pytest.mark.parametrize(("timestep_groups", "total"), [(5, 2000), (3, 1000), (7, 999), (1, 10), (10, 4), (22, 770)])
def test_groups_are_equal_stretches_of_the_schedule(timestep_groups: int, total: int) -> None:
    t = torch.arange(total + 30)
    want = [min(i * timestep_groups // total, timestep_groups - 1) for i in range(total + 30)]
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        got = timestep_group(t.to(dtype), timestep_groups, total)
        assert got.dtype == torch.int64 and got.tolist() == want
    assert timestep_group(torch.tensor([[-3.0]]), timestep_groups, total).tolist() == [[0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 3}, "width 8, which tau=3"),
        ({"kernel_size": 2}, "kernel_size of unit downs.1 must be odd, got 2"),
        ({"act": "gelu"}, "act of unit downs.1 must be one of rprelu, none, got 'gelu'"),
        ({"residual": "twice"}, "residual of unit downs.1 must be one of"),
        ({"shift": False, "copy_spread": 0.5}, "no shift to spread"),
        ({"timestep_groups": 0}, "timestep_groups must be"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        TimestepUnit(8, name="downs.1", **expansion_options(**options))
    assert words in str(caught.value)


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
@pytest.mark.parametrize("part", [TimestepShift(8, 5), TimestepRPReLU(8, 5)], ids=["shift", "act"])
def test_groups_of_another_batch_are_refused(part: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="of a batch of 2 must be one number a sample or one for all"):
        part(torch.zeros(2, 8, 3, 3), torch.zeros(shape, dtype=torch.long))
