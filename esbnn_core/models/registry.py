"""The catalogue of networks: builders with explicit signatures, found by name, unknown options refused by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from esbnn_core.errors import InputError

Kind = Literal["classifier", "trunk"]
"""What forward gives: logits (N, num_classes), or the feature maps that a detector stands on."""

STEM_SIDES = {"imagenet": 224, "cifar": 32}
"""Side of the square input that goes with each value of the option `stem`."""


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a network: its name, every option of its builder, the input (C, H, W) it was made for, its kind."""

    name: str
    options: Mapping[str, Any]
    input_size: tuple[int, int, int]
    kind: Kind = "classifier"


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., nn.Module]
    size: int
    kind: Kind = "classifier"


_BUILDERS: dict[str, _Entry] = {}


def register_model(name: str, build: Callable[..., nn.Module], size: int, kind: Kind = "classifier") -> None:
    """Enter a builder; `size` is the side of the square input that its papers use, `kind` what its forward gives."""
    if name in _BUILDERS:
        raise InputError(f"network {name} is registered twice: give one of them another name")
    _BUILDERS[name] = _Entry(build, size, kind)


def list_models(pattern: str = "", kind: Kind | None = None) -> list[str]:
    """Names of all networks, sorted; with a pattern those that contain it, with a kind those of that kind."""
    return sorted(name for name, entry in _BUILDERS.items() if pattern in name and kind in (None, entry.kind))


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a network by name; the options are those of its builder, e.g. num_classes, in_channels, tau, groups.

    Returns an nn.Module on the current default device, in training mode, that maps (N, in_channels, H, W) to logits
    (N, num_classes), a trunk to feature maps, and remembers its ModelSpec (see model_spec).

    Raises:
        InputError: unknown name or option (both named, nearest ones shown), or a width that tau*groups does not divide.
    """
    entry = _BUILDERS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, _BUILDERS, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "list_models() has the names"
        raise InputError(f"network {name!r} is not known: {hint}")
    known = inspect.signature(entry.build).parameters
    for option in options:
        if option not in known:
            raise InputError(f"network {name} has no option {option!r}: its options are {', '.join(known)}")
    bound = {key: options.get(key, parameter.default) for key, parameter in known.items()}
    model = entry.build(**bound)
    channels = bound.get("in_channels", 3)
    side = bound.get("image_size", STEM_SIDES.get(bound.get("stem", ""), entry.size))
    model.model_spec = ModelSpec(name, bound, (channels, side, side), entry.kind)  # type: ignore[assignment]
    return model


def model_spec(model: nn.Module) -> ModelSpec | None:
    """The ModelSpec of a network built by create_model, also after pack_; None for another module."""
    spec = getattr(model, "model_spec", None)
    return spec if isinstance(spec, ModelSpec) else None
