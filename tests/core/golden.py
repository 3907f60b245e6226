"""Rebuild of the golden records: the closed-form weight fill and the official tensor names of the classifiers.

The records (tests/golden/classifiers.json) are outputs of the original networks in float64 under this fill; their
code is not part of this repository.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RECORDS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "classifiers.json").read_text())

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
    "reactnet_a": [
        (r"^stem\.conv\.", "feature.0.conv1."),
        (r"^stem\.norm\.", "feature.0.bn1."),
        (r"^blocks\.", "feature."),
        (r"\.spatial\.conv\.sign\.shift$", ".move11.bias"),
        (r"\.spatial\.conv\.weight$", ".binary_3x3.weight"),
        (r"\.spatial\.norm\.", ".bn1."),
        (r"\.spatial\.act\.shift_in$", ".move12.bias"),
        (r"\.spatial\.act\.slope$", ".prelu1.weight"),
        (r"\.spatial\.act\.shift_out$", ".move13.bias"),
        (r"\.point\.\d\.conv\.sign\.shift$", ".move21.bias"),
        (r"\.(point\.0\.)?act\.shift_in$", ".move22.bias"),
        (r"\.(point\.0\.)?act\.slope$", ".prelu2.weight"),
        (r"\.(point\.0\.)?act\.shift_out$", ".move23.bias"),
    ],
    "bnext": [
        (r"^stem\.conv\.", "feature.0.conv1."),
        (r"^stem\.norm\.", "feature.0.bn1."),
        (r"^stem\.unused_prelu$", "feature.0.prelu.weight"),
        (r"^blocks\.", "feature."),
        (r"\.attention\.", ".Attention."),
        (r"\.core\.conv\.sign\.shift$", ".move.bias"),
        (r"\.core\.conv\.weight$", ".binary_conv.weight"),
        (r"\.core\.conv\.quantizer\.temperature$", ".binary_conv.temperature"),
        (r"\.activation_temperature$", ".binary_activation.temperature"),
        (r"\.core\.norm\.", ".norm1."),
        (r"\.core\.inner_act\.weight$", ".activation2.weight"),
        (r"\.act_in\.weight$", ".activation1.weight"),
        (r"\.unused_act$", ".activation1.weight"),
        (r"\.gate\.se\.", ".se.se."),
        (r"^act\.weight$", "prelu.weight"),
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
KEY_OF_BRANCH = {"reactnet": "", "recu": "", "reactnet_a": "conv.weight", "bnext": "core.conv.weight"}
# (1, C, 1, 1) in the originals, (C,) here: the fill goes by the original's number of dimensions
_FOUR_D = re.compile(r"(\.move\d*\.bias|\.scale)$")
_THREE_D = re.compile(r"\.alpha$")


def _pair_units(key: str) -> str:
    """stages.layer1.5.conv -> layer1.2.conv2: the originals of ReCU keep two units in a block."""
    match = re.match(r"^(layer\d)\.(\d+)\.(conv|norm)\.(.*)$", key)
    if not match:
        return key
    stage, unit, part, rest = match.groups()
    return f"{stage}.{int(unit) // 2}.{'conv' if part == 'conv' else 'bn'}{int(unit) % 2 + 1}.{rest}"


def _branches(key: str, doubled: bool) -> str:
    """feature.1.point.1.norm -> bn2_2 where the width doubles, bn2 where there is one branch."""
    match = re.match(r"^(feature\.\d+)\.point\.(\d)\.(conv|norm)\.(.*)$", key)
    if not match:
        return key
    block, branch, part, rest = match.groups()
    number = int(branch) + 1
    if part == "conv":
        return f"{block}.binary_pw{f'_down{number}' if doubled else ''}.{rest}"
    return f"{block}.bn2{f'_{number}' if doubled else ''}.{rest}"


def _ffn(key: str, doubled: bool) -> str:
    """feature.2.point.0 -> feature.2.FFN_1 where the width doubles, feature.2.FFN elsewhere."""
    number = (lambda m: f".FFN_{int(m.group(1)) + 1}.") if doubled else (lambda m: ".FFN.")
    return re.sub(r"\.point\.(\d)\.", number, key)


def official_key(key: str, family: str, doubled: bool = False) -> str:
    """Name of the tensor in the original's file; `doubled` says whether its block has two 1x1 branches."""
    for pattern, replacement in _RULES[family]:
        key = re.sub(pattern, replacement, key)
    if family == "recu":
        return _pair_units(key)
    if family == "reactnet_a":
        return _branches(key, doubled)
    return _ffn(key, doubled) if family == "bnext" else key


def closed_form(key: str, count: int) -> Tensor:
    n = torch.arange(count, dtype=torch.float64)
    phase = math.fmod(0.01 * sum(map(ord, key)), 1)
    t = (n + 1) * 0.6180339887498949 + (torch.floor(n / 7) + 1) * 0.4142135623730951 + phase
    return 2 * (t - torch.floor(t)) - 1


@torch.no_grad()
def fill(model: nn.Module, family: str, temperature: float = 1e-8) -> nn.Module:
    """Float64, eval, every tensor filled by its official key; BNext's temperatures as given, 1e-8 is sign mode."""
    model = model.double().eval()
    state = model.state_dict()
    for key, tensor in state.items():
        block = ".".join(key.split(".")[:2])
        name = official_key(key, family, doubled=f"{block}.point.1.{KEY_OF_BRANCH[family]}" in state)
        u = closed_form(name, tensor.numel()).view(tensor.shape)
        if not tensor.is_floating_point():
            value = torch.zeros_like(tensor)
        elif name.endswith(".temperature"):
            value = torch.full_like(tensor, temperature)
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
