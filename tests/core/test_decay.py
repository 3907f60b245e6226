"""DecayRule against the shapes and names of the originals' own parameters, and its groups against the whole network."""

import math

import pytest
import torch
from torch import nn

from esbnn_core import InputError, create_model
from esbnn_core.checkpoint.official import official_names
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
@pytest.mark.parametrize("kind", ["conv", "weights"])
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
        ({"kind": "all", "value": 1.0}, "kind of decay must be one of conv, weights, got 'all'"),
        ({"kind": "conv", "value": -1.0}, "value of decay must be .*, got -1.0"),
        ({"kind": "conv", "value": 1.0, "rest": math.nan}, "rest of decay must be .*, got nan"),
    ],
)
def test_what_is_no_rule_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DecayRule(**options)  # type: ignore[arg-type]
