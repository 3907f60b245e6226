"""DecayRule against the shapes and names of the originals' own parameters, and its groups against the whole network."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from esbnn_core import InputError, create_model
from esbnn_core.checkpoint.official import official_names
from esbnn_core.layers import TimestepShift
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule

NETWORKS = ["reactnet_a", "rep_reactnet_a", "reactnet_resnet18", "es_reactnet_resnet18", "bnext_tiny", "es_bnext_tiny"]


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_conv_is_what_the_originals_script_takes(name: str) -> None:
    model = on_meta(name)
    names = official_names(model)
    # "every parameter that is 4-D or has conv in its name" (papers.md#two-steps, #bnext-optimizer), on the original's
    # names and shapes
    want = {
        key
        for key, _ in model.named_parameters()
        if len(names[key][1]) == 4 or ("conv" in names[key][0] and names[key][0].endswith("weight"))
    }
    chosen = DecayRule("conv", 1e-5).chosen(model)
    assert chosen == want
    assert 0 < len(chosen) < len(list(model.parameters()))


@pytest.mark.parametrize("name", [*NETWORKS, "recu_resnet18", "bireal_resnet18", "recu_resnet20"])
@pytest.mark.parametrize("kind", ["conv", "weights", "affine"])
def test_every_parameter_is_in_one_group(name: str, kind: str) -> None:
    model = on_meta(name)
    decayed, rest = DecayRule(kind, 0.5, 0.25).groups(model)  # type: ignore[arg-type]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.5, 0.25)
    ids = [id(p) for group in (decayed, rest) for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", ["recu_resnet18", "recu_resnet20", "es_reactnet_resnet20"])
def test_weights_are_those_of_convolutions_and_linear_layers(name: str) -> None:
    model = on_meta(name)
    chosen = DecayRule("weights", 1e-4).chosen(model)
    shapes = {key: p.dim() for key, p in model.named_parameters()}
    # of these networks alone: a matrix or a filter bank is a weight, everything else is a vector
    assert chosen == {key for key, dim in shapes.items() if dim in (2, 4)}
    assert "fc.weight" in chosen and "fc.bias" not in chosen and "stem.conv.weight" in chosen


@pytest.mark.parametrize("name", ["es_reactnet_resnet20", "bireal_resnet18", "recu_resnet20"])
def test_affine_is_what_a_start_changes_and_the_norms(name: str) -> None:
    model = on_meta(name)
    # by the names of these networks: a shift in front of a sign, and a norm's weight and bias
    norms = {key for key, module in model.named_modules() if type(module) in (nn.BatchNorm2d, nn.BatchNorm1d)}
    want = {
        key for key, _ in model.named_parameters() if key.endswith(".sign.shift") or key.rpartition(".")[0] in norms
    }
    assert DecayRule("affine", 0.0).chosen(model) == want
    assert any("shift" in key for key in want) == (name == "es_reactnet_resnet20")


def test_affine_takes_the_shifts_of_all_timestep_groups() -> None:
    layer = nn.Sequential(TimestepShift(4, 3), nn.Conv2d(4, 2, 1), nn.GroupNorm(1, 2))
    chosen = DecayRule("affine", 0.0).chosen(layer)
    assert chosen == {"0.shifts.0", "0.shifts.1", "0.shifts.2", "2.weight", "2.bias"}


@pytest.mark.parametrize("rate", [0.0, 0.2, 5.0])
def test_the_kind_has_a_rate_of_its_own(rate: float) -> None:
    # a step of plain descent moves by rate * lr * gradient, at each point of the schedule
    model, rule = create_model("es_reactnet_resnet8", tau=2), DecayRule("affine", 0.0, rate=rate)
    optimizer = torch.optim.SGD(rule.groups(model), lr=0.5)
    rule.scale_rates(optimizer)
    scheduler = ProgressLR(optimizer, "linear")
    rule.check_rates(optimizer, scheduler)
    scheduler.bind(4)
    chosen = rule.chosen(model)
    for step in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        scheduler.step()
        for name, p in model.named_parameters():
            want = before[name] - 0.5 * (1 - step / 4) * (rate if name in chosen else 1)
            torch.testing.assert_close(p.detach(), want)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_a_scheduler_with_a_maximum_of_its_own_is_refused(rate: float) -> None:
    rule = DecayRule("affine", 0.0, rate=rate)
    optimizer = torch.optim.SGD(rule.groups(create_model("reactnet_resnet8")), lr=0.5)
    rule.scale_rates(optimizer)
    # a maximum for each group is nobody's rate undone where the rule has none
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.5] if rate == 1 else 0.5, total_steps=4)
    if rate == 1:
        rule.check_rates(optimizer, scheduler)
        return
    with pytest.raises(InputError, match=r"lr_scheduler must keep the rate 0\.2 of decay"):
        rule.check_rates(optimizer, scheduler)


@pytest.mark.parametrize("rate", [1.0, 0.0, 0.2])
@pytest.mark.parametrize("floor", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["cosine", "restarts", "plateau", "after another"])
def test_a_scheduler_with_a_lowest_rate_for_all_is_refused(kind: str, floor: float, rate: float) -> None:
    """Frozen thresholds would rise to it."""
    rule = DecayRule("affine", 0.0, rate=rate)
    optimizer = torch.optim.SGD(rule.groups(create_model("reactnet_resnet8")), lr=0.5)
    rule.scale_rates(optimizer)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=floor)
    scheduler: Any = {
        "cosine": lambda: cosine,
        "restarts": lambda: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, eta_min=floor),
        "plateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=floor),
        "after another": lambda: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.LinearLR(optimizer, 0.5), cosine], [2]
        ),
    }[kind]()
    if floor and rate != 1:
        with pytest.raises(
            InputError, match=rf"lr_scheduler must keep the rate {rate} of decay, got .* rate 0\.01 for all"
        ):
            rule.check_rates(optimizer, scheduler)
    else:
        rule.check_rates(optimizer, scheduler)


def test_a_network_without_the_kind_is_refused() -> None:
    with pytest.raises(InputError, match="must have parameters of its kind, Linear has none of 'affine'"):
        DecayRule("affine", 0.1).groups(nn.Linear(2, 2))


@pytest.mark.parametrize(("value", "rest"), [(0.1, 0.0), (1e-8, 1e-3)])
def test_the_optimizer_decays_as_told(value: float, rest: float) -> None:
    model = create_model("reactnet_resnet8")
    rule = DecayRule("conv", value, rest)
    optimizer = torch.optim.AdamW(rule.groups(model), lr=0.5, weight_decay=0.9)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    chosen = rule.chosen(model)
    for name, p in model.named_parameters():
        # AdamW without a gradient: w * (1 - lr * decay)
        want = before[name] * (1 - 0.5 * (value if name in chosen else rest))
        torch.testing.assert_close(p.detach().double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "all", "value": 1.0}, "kind of decay must be one of conv, weights, affine, got 'all'"),
        ({"kind": "conv", "value": -1.0}, "value of decay must be .*, got -1.0"),
        ({"kind": "conv", "value": 1.0, "rest": math.nan}, "rest of decay must be .*, got nan"),
        ({"kind": "affine", "value": 0.0, "rate": math.inf}, "rate of decay must be .*, got inf"),
    ],
)
def test_what_is_no_rule_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DecayRule(**options)  # type: ignore[arg-type]
