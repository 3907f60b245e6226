"""Official files of the originals, read into our networks and written back (papers.md#checkpoints, #golden-records).

esbnn_core.checkpoint.official_keys has the names. A file is read with weights_only=True and in no other way: a pickle
with more than tensors and plain containers is refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from esbnn_core.checkpoint.format import check_values, is_dense, load_state
from esbnn_core.checkpoint.official_keys import apply_rules, key_map, looks_like, official_names
from esbnn_core.checkpoint.torch_file import load_torch_file
from esbnn_core.errors import InputError
from esbnn_core.layers.base import binary_layers, exact_zeros
from esbnn_core.layers.quantizers import Temperature

__all__ = ["CONTAINERS", "OfficialReport", "load_official", "official_names", "to_official"]

CONTAINERS = ("state_dict", "params", "weight", "model")
"""Keys under which the originals' files hold the tensors."""


@dataclass(frozen=True)
class OfficialReport:
    """What was read.

    Attributes:
        tensors: how many.
        zeros: weights of exactly 0 whose sign is taken: +1 here, 0 in the original.
        temperatures: smallest and largest weight temperature of a BNext; from 1e-7 on its weights are real numbers, not
            signs.
        noted: last of the temperatures that BNext's training script notes epoch by epoch in the file
            (papers.md#es-quirk-1).
    """

    tensors: int
    zeros: int
    temperatures: tuple[float, float] | None
    noted: float | None = None


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The tensors by official name, buffers included and without a prefix, in the original's shapes; CPU copies.

    Raises:
        InputError: a network without official files.
    """
    state, sign = model.state_dict(), key_map(model).sign
    return {
        name: state[key].detach().cpu().reshape(shape) * sign(name)
        for key, (name, shape) in official_names(model).items()
    }


def load_official(model: nn.Module, source: str | Path | Mapping[str, object]) -> OfficialReport:
    """Load an official file, or a mapping as torch.load gives it, all or none.

    Accepts the containers of CONTAINERS, the prefix `module.`, flat `weights` of the older ReActNet and Bi-Real files,
    and 0-d for (1,) scalars. Dtype and device stay the model's.

    Args:
        model: latent, of the file's network.
        source: the file or mapping.

    Raises:
        InputError: a network without official files; an unreadable file; a missing, extra or reshaped tensor, each
            named, with the network that the file looks like; a tensor that is not finite. The model is then as it was.
    """
    label = str(source) if isinstance(source, str | Path) else "the mapping"
    found, noted = _read_tensors(source, label)
    names, family = official_names(model), key_map(model)
    tensors = {apply_rules(family.spelling, name): tensor for name, tensor in found.items()}
    if len(tensors) < len(found):
        raise InputError(f"{label} has a tensor under two spellings of one name: take one out")
    known = dict.fromkeys(name for name, _ in names.values())
    missing = [name for name in known if name not in tensors]
    extra = [name for name in tensors if name not in known]
    if missing or extra:
        faults = [f"{name} is missing" for name in missing[:3]] + [f"{name} is not expected" for name in extra[:3]]
        raise InputError(
            f"{label} does not fit the network, it looks like {looks_like(tensors)}: {'; '.join(faults)} "
            f"({len(missing)} missing, {len(extra)} extra): build the network that the file was saved from"
        )
    state = model.state_dict()
    ours = {key: tensor for key, tensor in state.items() if key not in names}
    for key, (name, shape) in names.items():
        tensor, want = tensors[name], state[key]
        # (C,) against (1, C, 1, 1), flat weights (N, 1), 0-d scalars: the same numbers in the same order
        flat = tensor.shape in ((want.numel(), 1), (want.numel(),)) or tensor.numel() == 1
        same_kind = tensor.is_floating_point() == want.is_floating_point()
        if same_kind and tensor.numel() == want.numel() and (flat or tuple(tensor.shape) in (shape, tuple(want.shape))):
            tensor = tensor.to(want.dtype).reshape(want.shape) * family.sign(name)
        ours[key] = tensor
    check_values(model)
    load_state(model, ours, label)
    layers = [layer for _, layer in binary_layers(model)]
    found_at = [layer.quantizer.temperature.item() for layer in layers if isinstance(layer.quantizer, Temperature)]
    temperatures = (min(found_at), max(found_at)) if found_at else None
    return OfficialReport(len(tensors), exact_zeros(model), temperatures, noted)


def _read_tensors(source: str | Path | Mapping[str, object], label: str) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of a file or mapping by official name, and the last of its list `temp` if it has one."""
    found: object = source
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise InputError(f"official file {label} does not exist: check the path")
        found = load_torch_file(source, "official file", "fetch it again")
    if isinstance(found, Mapping) and "pytorch-lightning_version" in found:
        raise InputError(
            f"official file {label} must be one of the originals, got a run's checkpoint: give it as ckpt_path, or "
            f"give the run's weights.safetensors"
        )
    history = found.get("temp") if isinstance(found, Mapping) else None
    last = history[-1] if isinstance(history, list) and history else None
    noted = float(last) if isinstance(last, int | float) else None
    tensors = unwrap(found, CONTAINERS)
    if tensors is None:
        raise InputError(
            f"{label} holds no mapping of dense tensors by name, bare or under {', '.join(CONTAINERS)}: give the "
            f"model's file"
        )
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = re.sub(r"\.weights$", ".weight", key.removeprefix("module."))
        if name in named:
            raise InputError(f"{label} has the tensor {name} twice, once as {key}: take one out")
        named[name] = value
    return named, noted


def unwrap(found: object, containers: tuple[str, ...]) -> dict[str, Tensor] | None:
    """The dense tensors by name in what a file holds, bare or under `containers`; None if it holds other things."""
    for container in containers:
        if isinstance(found, Mapping) and isinstance(found.get(container), Mapping):
            found = found[container]
    if not isinstance(found, Mapping) or not found:
        return None
    if not all(isinstance(key, str) and is_dense(value) for key, value in found.items()):
        return None
    return dict(found)
