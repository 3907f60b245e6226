"""The catalogue of networks: builders found by name, whose options are known and refused by name."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.widths import PLAIN, Expansion
from esbnn_core.units.start import Start, start_apart_

Kind = Literal["classifier", "trunk"]
"""What forward returns: logits (N, num_classes), or the feature maps that a detector reads."""

FamilyRule = Literal["plain", "es", "rep"]

STEM_SIDES = {"imagenet": 224, "cifar": 32}
"""Side of the square input that goes with each value of the option `stem`."""


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a network.

    Attributes:
        name: of the catalogue.
        options: every option of its builder.
        input_size: (C, H, W) that it was made for.
        kind: what its forward returns.
    """

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
    """Enter one network.

    Args:
        name: a new one.
        build: makes the network; its keyword arguments are the options, each with a default.
        size: side of the square input that its papers use.
        kind: what its forward returns.

    Raises:
        InputError: the name is taken.
    """
    if name in _BUILDERS:
        raise InputError(f"network {name} is registered twice: give one of them another name")
    _BUILDERS[name] = _Entry(build, size, kind)


def register_family(
    name: str,
    build: Callable[..., nn.Module],
    size: int,
    rules: Iterable[FamilyRule] = ("plain", "es", "rep"),
    kind: Kind = "classifier",
) -> None:
    """Enter a network as `name` (plain), `es_name` and `rep_name`.

    The options are those of `build`. Those of the rule come after in_channels: tau, groups and copy_spread for "es",
    tau for "rep".

    Args:
        name: of the plain network.
        build: makes the network from an Expansion, its first argument, and from options that have defaults.
        size: side of the square input that its papers use.
        rules: the forms to enter.
        kind: what its forward returns.

    Raises:
        InputError: a name is taken.
    """
    for rule in rules:
        prefix = "" if rule == "plain" else f"{rule}_"
        register_model(prefix + name, _with_factors(build, _EXPANSIONS[rule]), size, kind)


def _plain() -> Expansion:
    return PLAIN


def _es(tau: int = 2, groups: int = 1, copy_spread: float = 0.0) -> Expansion:
    return Expansion(tau, groups, copy_spread)


def _rep(tau: int = 2) -> Expansion:
    return Expansion(tau, rule="rep")


_EXPANSIONS: dict[FamilyRule, Callable[..., Expansion]] = {"plain": _plain, "es": _es, "rep": _rep}


def _with_factors(build: Callable[..., nn.Module], expand: Callable[..., Expansion]) -> Callable[..., nn.Module]:
    """`build` with the arguments of `expand` in the place of its first one, after in_channels in the signature."""
    factors = inspect.signature(expand).parameters
    _, *options = inspect.signature(build).parameters.values()
    place = [option.name for option in options].index("in_channels") + 1
    parameters = [*options[:place], *factors.values(), *options[place:]]
    # a partial makes its arguments keyword-only, in the catalogue all are alike
    signature = inspect.Signature([p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in parameters])

    def build_expanded(*args: Any, **options: Any) -> nn.Module:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        values = bound.arguments
        return build(expand(**{name: values.pop(name) for name in factors}), **values)

    build_expanded.__signature__ = signature  # type: ignore[attr-defined]
    return build_expanded


def list_models(pattern: str = "", kind: Kind | None = None) -> list[str]:
    """Names of all networks, sorted.

    Args:
        pattern: only names that contain it.
        kind: only networks of that kind.
    """
    return sorted(name for name, entry in _BUILDERS.items() if pattern in name and kind in (None, entry.kind))


def create_model(name: str, start: Start | None = None, **options: Any) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of list_models().
        start: where thresholds and gains start, see start_apart_; None for the papers' start.
        options: those of the network's builder, e.g. num_classes, in_channels, tau, groups.

    Returns:
        An nn.Module on the current default device, in training mode, that maps (N, in_channels, H, W) to logits
        (N, num_classes), or a trunk to feature maps. model_spec returns how it was built.

    Raises:
        InputError: an unknown name (the nearest ones are named) or option (all are named); a width that tau*groups
            does not divide; a start for a network without a place for it.
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
    if start is not None:
        start_apart_(model, start)
    channels = bound.get("in_channels", 3)
    side = bound.get("image_size", STEM_SIDES.get(bound.get("stem", ""), entry.size))
    model.model_spec = ModelSpec(name, bound, (channels, side, side), entry.kind)  # type: ignore[assignment]
    return model


def model_spec(model: nn.Module) -> ModelSpec | None:
    """The ModelSpec of a network built by create_model, also after pack_; None for another module."""
    spec = getattr(model, "model_spec", None)
    return spec if isinstance(spec, ModelSpec) else None
