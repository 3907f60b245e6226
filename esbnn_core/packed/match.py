"""Which packed class serves which latent one: a packed class says so itself, with the decorator `packs`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

if TYPE_CHECKING:
    from esbnn_core.packed.layers import PackedLayer

Packed = TypeVar("Packed", bound="Callable[[Any], PackedLayer]")

_PACKED_BY_LATENT: "dict[type[nn.Module], Callable[[Any], PackedLayer]]" = {}


def packs(*latents: type[nn.Module]) -> Callable[[Packed], Packed]:
    """Register the decorated class as the packed form of `latents`, and of subclasses without one of their own.

    The class is built from a latent module alone (for its shapes), and has a method `fill_(module, name)` that computes
    bits and affines from it and returns the packed module.
    """

    def register(packed: Packed) -> Packed:
        _PACKED_BY_LATENT.update(dict.fromkeys(latents, packed))
        return packed

    return register


def packed_like(module: nn.Module) -> "PackedLayer | None":
    """The empty packed module for a latent unit or layer, None for anything else; the most specific class decides."""
    kind = latent_kind(module)
    return None if kind is None else _PACKED_BY_LATENT[kind](module)


def latent_kind(module: nn.Module) -> type[nn.Module] | None:
    """The registered class of a latent unit or layer, None for anything else."""
    return next((kind for kind in type(module).__mro__ if kind in _PACKED_BY_LATENT), None)
