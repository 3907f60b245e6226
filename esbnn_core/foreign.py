"""Official files of the originals: declared key maps to our tensors and back (spec 11, 13).

Every official key is used exactly once. Names and shapes of the originals are facts; none of their code is here. A file
is read with weights_only=True and nothing else: a pickle that holds more than tensors and plain containers is refused.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from esbnn_core.checkpoint import check_state
from esbnn_core.errors import InputError
from esbnn_core.models import BinaryResNet, BNext, ReActNetA, model_spec
from esbnn_core.quantizers import Temperature
from esbnn_core.unit import binary_layers

CONTAINERS = ("state_dict", "params", "weight", "model")
"""Keys under which the originals keep the tensors in their files."""

_RULES = {  # family -> replacements from our keys to the official ones, in order
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
# where an original keeps (C,) as (1, C, 1, 1) or (C, 1, 1)
_SHAPES: dict[str, tuple[int, ...]] = {r"\.move\d*\.bias$": (1, -1, 1, 1), r"\.alpha$": (-1, 1, 1)}
_LOOKS = {
    ".Attention.": "a BNext (bnext_*, es_bnext_*)",
    ".binary_3x3.": "ReActNet-A (reactnet_a, rep_reactnet_a)",
    ".move0.": "a ReActNet-ResNet (reactnet_resnet18 or 34)",
    ".binary_conv.": "a Bi-Real ResNet (bireal_resnet18 or 34)",
    ".alpha": "a ReCU ResNet (recu_resnet20)",
}


@dataclass(frozen=True)
class OfficialReport:
    """What was read: tensors, exact zeros among the latent weights (their sign is +1 here, 0 in the original), and the
    smallest and largest weight temperature of a BNext (at 1e-7 or above its weights are real numbers, not signs)."""

    tensors: int
    zeros: int
    temperatures: tuple[float, float] | None


def family(model: nn.Module) -> str:
    """Which key map the network has. Raises InputError for one without an original."""
    spec = model_spec(model)
    if isinstance(model, BNext):
        return "bnext"
    if isinstance(model, ReActNetA):
        return "reactnet_a"
    if isinstance(model, BinaryResNet) and spec is not None:
        if spec.name.endswith(("reactnet_resnet18", "reactnet_resnet34", "bireal_resnet18", "bireal_resnet34")):
            return "reactnet"
        if spec.name.endswith("recu_resnet20"):
            return "recu"
    name = spec.name if spec else type(model).__name__
    raise InputError(f"network {name} has no official files that a key map is declared for: give one that has")


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


def official_names(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our key -> (official key, official shape) for every tensor of the network; a shared tensor has two of ours."""
    kind, state = family(model), model.state_dict()
    branch = "core.conv.weight" if kind == "bnext" else "conv.weight"
    names = {}
    for key, tensor in state.items():
        doubled = f"{'.'.join(key.split('.')[:2])}.point.1.{branch}" in state
        name = key
        for pattern, replacement in _RULES[kind]:
            name = re.sub(pattern, replacement, name)
        if kind == "recu":
            name = _pair_units(name)
        elif kind == "reactnet_a":
            name = _branches(name, doubled)
        elif kind == "bnext":
            name = _ffn(name, doubled)
        shape = tuple(tensor.shape)
        for pattern, kept in _SHAPES.items():
            if re.search(pattern, name):
                shape = tuple(tensor.numel() if size == -1 else size for size in kept)
        names[key] = (name, shape)
    return names


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """Every official key, buffers included and without a prefix, in the original's shapes; copies, on the CPU."""
    state = model.state_dict()
    return {
        name: state[key].detach().cpu().reshape(shape).clone() for key, (name, shape) in official_names(model).items()
    }


def load_official(model: nn.Module, source: str | Path | Mapping[str, object]) -> OfficialReport:
    """Load an official file, or a mapping as torch.load gives it, all or nothing.

    Accepts the containers of CONTAINERS, the prefix `module.`, flat `weights` of the older ReActNet and Bi-Real files,
    and 0-d for (1,) scalars. Dtype and device stay the model's.

    Raises:
        InputError: an unreadable file; a missing, extra or reshaped tensor, each named, with the network that the file
            looks like; a tensor that is not finite. The model is then as it was.
    """
    label = str(source) if isinstance(source, str | Path) else "the mapping"
    tensors = _tensors(source, label)
    names = official_names(model)
    given = {name for name, _ in names.values()}
    missing = [name for name in dict.fromkeys(name for name, _ in names.values()) if name not in tensors]
    extra = [name for name in tensors if name not in given]
    if missing or extra:
        faults = [f"{name} is missing" for name in missing[:3]] + [f"{name} is not expected" for name in extra[:3]]
        looks = next(
            (text for part, text in _LOOKS.items() if any(part in name for name in tensors)), "another network"
        )
        raise InputError(
            f"{label} does not fit the network, it looks like {looks}: {'; '.join(faults)} ({len(missing)} missing, "
            f"{len(extra)} extra): build the network that the file was saved from"
        )
    state = model.state_dict()
    ours = {}
    for key, (name, _) in names.items():
        tensor, want = tensors[name], state[key]
        # (C,) against (1, C, 1, 1), flat weights, 0-d scalars: the same numbers in the same order
        ours[key] = tensor.to(want.dtype).reshape(want.shape) if tensor.numel() == want.numel() else tensor
    check_state(model, ours, label)
    model.load_state_dict(ours)
    layers = [layer for _, layer in binary_layers(model)]
    heat = [layer.quantizer.temperature.item() for layer in layers if isinstance(layer.quantizer, Temperature)]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return OfficialReport(len(tensors), zeros, (min(heat), max(heat)) if heat else None)


def _tensors(source: str | Path | Mapping[str, object], label: str) -> dict[str, Tensor]:
    """The tensors of a file or mapping by official key."""
    found: object = source
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise InputError(f"official file {label} does not exist: check the path")
        try:
            found = torch.load(source, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"official file {label} cannot be read as plain tensors ({reason}): fetch it again"
            ) from error
    for container in CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(container), Mapping):
            found = found[container]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(
            f"{label} holds no mapping of tensors, bare or under {', '.join(CONTAINERS)}: give the model file"
        )
    return {re.sub(r"\.weights$", ".weight", str(key).removeprefix("module.")): value for key, value in found.items()}
