"""Rebuild of the golden records: the closed-form weight fill by official tensor names.

The records (tests/golden/classifiers.json) are outputs of the original networks in float64 under this fill; their
code is not part of this repository.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.checkpoint.official import load_official, to_official

RECORDS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "classifiers.json").read_text())


def closed_form(key: str, count: int) -> Tensor:
    phase = math.fmod(0.01 * sum(map(ord, key)), 1)
    t = _before_phase(count) + phase
    return t.sub_(torch.floor(t)).mul_(2).sub_(1)


def _before_phase(count: int) -> Tensor:
    """What the numbers of all keys have in common, worked out for the largest tensor so far and kept."""
    if count > len(_COMMON[0]):
        n = torch.arange(count, dtype=torch.float64)
        _COMMON[0] = (n + 1) * 0.6180339887498949 + (torch.floor(n / 7) + 1) * 0.4142135623730951
    return _COMMON[0][:count]


_COMMON = [torch.empty(0, dtype=torch.float64)]


def fill(model: nn.Module, temperature: float = 1e-8) -> nn.Module:
    """Float64, eval, filled through load_official like an original's file; temperature 1e-8 is BNext's sign mode."""
    model = model.double().eval()
    load_official(model, {name: _value(name, given, temperature) for name, given in to_official(model).items()})
    return model


def _value(name: str, given: Tensor, temperature: float) -> Tensor:
    """What the records were made with for an official key; `given` has its shape and dtype."""
    if not given.is_floating_point():
        return torch.zeros_like(given)
    if name.endswith(".temperature"):
        return torch.full_like(given, temperature)
    if name.endswith(".att_prob_clip"):
        return torch.full_like(given, 0.005)
    if name.endswith(".tau"):
        return torch.ones_like(given)
    u = closed_form(name, given.numel()).view(given.shape)
    if name.endswith(".running_var"):
        return u.abs_().mul_(0.5).add_(1)
    return u.mul_(0.3).add_(0.5) if given.dim() <= 1 else u.mul_(0.3)


def close(x: Tensor, record: dict[str, Any], tolerance: float = 1e-9) -> None:
    """Assert shape, moments and edge values of x against a record, relative to the record's mean magnitude."""
    assert list(x.shape) == record["shape"]
    flat = x.flatten()
    got = {
        "mean": flat.mean(),
        "mean_abs": flat.abs().mean(),
        "std_pop": flat.std(correction=0),
        "first8": flat[:8],
        "last4": flat[-4:],
    }
    for name, value in got.items():
        want = torch.tensor(record[name], dtype=torch.float64)
        error = ((value - want).abs().max() / record["mean_abs"]).item()
        assert error <= tolerance, f"{name} differs by {error:.2e} of the mean magnitude"
