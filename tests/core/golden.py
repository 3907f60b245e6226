"""Rebuild of the golden records: the closed-form weight fill and the official tensor names of the ResNet family.

The records (tests/golden/resnets.json) are outputs of the original networks in float64 under this fill; the original
code is not part of this repository.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RECORDS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "resnets.json").read_text())

_RULES = {
    "reactnet": [
        (r"^stem\.conv\.", "conv1."),
        (r"^stem\.norm\.", "bn1."),
        (r"^stages\.", ""),
        (r"\.conv\.sign\.shift$", ".move0.bias"),
        (r"\.conv\.weight$", ".binary_conv.weight"),
        (r"\.norm\.", ".bn1."),
        (r"\.shortcut\.", ".downsample."),
        (r"\.act\.shift_in$", ".move1.bias"),
        (r"\.act\.slope$", ".prelu.weight"),
        (r"\.act\.shift_out$", ".move2.bias"),
    ],
    "recu": [
        (r"^stem\.conv\.", "conv1."),
        (r"^stem\.norm\.", "bn1."),
        (r"^stages\.", ""),
        (r"\.quantizer\.tau$", ".tau"),
        (r"\.learned_scale$", ".alpha"),
        (r"^head_norm\.", "bn2."),
        (r"^fc\.", "linear."),
    ],
}
# (1, C, 1, 1) in the originals, (C,) here: the fill goes by the original's number of dimensions
_FOUR_D = re.compile(r"\.move\d\.bias$")
_THREE_D = re.compile(r"\.alpha$")


def _pair_units(key: str) -> str:
    """stages.layer1.5.conv -> layer1.2.conv2: the originals of ReCU keep two units in a block."""
    match = re.match(r"^(layer\d)\.(\d+)\.(conv|norm)\.(.*)$", key)
    if not match:
        return key
    stage, unit, part, rest = match.groups()
    return f"{stage}.{int(unit) // 2}.{'conv' if part == 'conv' else 'bn'}{int(unit) % 2 + 1}.{rest}"


def official_key(key: str, family: str) -> str:
    for pattern, replacement in _RULES[family]:
        key = re.sub(pattern, replacement, key)
    return _pair_units(key) if family == "recu" else key


def closed_form(key: str, count: int) -> Tensor:
    n = torch.arange(count, dtype=torch.float64)
    phase = math.fmod(0.01 * sum(map(ord, key)), 1)
    t = (n + 1) * 0.6180339887498949 + (torch.floor(n / 7) + 1) * 0.4142135623730951 + phase
    return 2 * (t - torch.floor(t)) - 1


@torch.no_grad()
def fill(model: nn.Module, family: str) -> nn.Module:
    """Float64, eval, every tensor filled by its official key."""
    model = model.double().eval()
    for key, tensor in model.state_dict().items():
        name = official_key(key, family)
        u = closed_form(name, tensor.numel()).view(tensor.shape)
        if not tensor.is_floating_point():
            value = torch.zeros_like(tensor)
        elif name.endswith(".tau"):
            value = torch.ones_like(tensor)
        elif name.endswith(".running_var"):
            value = 1 + 0.5 * u.abs()
        elif tensor.dim() <= 1 and not _FOUR_D.search(name) and not _THREE_D.search(name):
            value = 0.5 + 0.3 * u
        else:
            value = 0.3 * u
        tensor.copy_(value)
    return model


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
