"""What makes one network compute otherwise than another with the same tensors: its modules and their settings."""

from enum import Enum
from typing import Any

import torch
from torch import nn

NEUTRAL = frozenset({"training", "momentum", "p", "inplace", "latent_init", "init", "process_group", "model_spec"})
"""Settings that a network in evaluation does not read, or that are used up when it is built; and how it was built."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), tuple, list, dict, set, frozenset, Enum, torch.dtype)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def find_change(model: nn.Module, built: nn.Module) -> str:
    """The first thing in which a network differs from the one it should be, but for the numbers in its tensors.

    Compared are the modules by name and class, their settings (kernel_size, eps, clip), forwards set on a module, and
    the names and shapes of tensors. A SyncBatchNorm counts as the norm that it was made of. Not compared: hooks,
    settings that evaluation does not read (momentum, a dropout's p), dtypes, devices, attributes that were added.

    Args:
        model: the network, on any device.
        built: what it should be, also on the meta device.

    Returns:
        the difference in words ("bn.eps is 0.1, built with 1e-05"), "" for none.
    """
    found = dict(model.named_modules(remove_duplicate=False))
    wanted = dict(built.named_modules(remove_duplicate=False))
    for name in dict.fromkeys([*wanted, *found]):
        place = name or "the network"
        if name not in found:
            return f"{place} is missing"
        if name not in wanted:
            return f"{place} was added"
        if difference := _module_change(found[name], wanted[name]):
            return f"{place}{difference}"
    state, shapes = _shapes(model), _shapes(built)
    for key in [*shapes, *state]:
        if key not in state:
            return f"{key} is missing"
        if key not in shapes:
            return f"{key} was added"
        if state[key] != shapes[key]:
            return f"{key} has shape {state[key]}, built with {shapes[key]}"
    return ""


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _module_change(module: nn.Module, built: nn.Module) -> str:
    kind, wanted = type(module), type(built)
    if kind is not wanted and not (kind is nn.SyncBatchNorm and wanted in NORMS):
        return f" is a {kind.__name__}, built as a {wanted.__name__}"
    held = vars(module)
    for key in held:
        if callable(held[key]) and callable(getattr(kind, key, None)) and not key.startswith("_"):
            return f" has a {key} of its own"
    for key, value in vars(built).items():
        if key.startswith("_") or key in NEUTRAL:
            continue
        if key not in held:
            return f" has no {key}, built with {value!r}"
        if not _same(held[key], value):
            return f".{key} is {held[key]!r}, built with {value!r}"
    return ""


def _same(value: Any, built: Any) -> bool:
    """Equal numbers, words and records of them; other objects (functions, caches) by their class alone."""
    if isinstance(built, PLAIN) or hasattr(built, "__dataclass_fields__"):
        return bool(value == built)
    return type(value) is type(built)
