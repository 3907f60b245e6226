"""Weights that a module also holds in the order of a native kernel, and whether they are still those of its weights."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from esbnn_core.kernels.direct import unwatched

_LOCK = threading.Lock()


class _Source(NamedTuple):
    """A tensor that lanes were made from: whether it is a buffer, its name, it itself and how often it was written to.

    Tensors of inference mode do not count (None).
    """

    is_buffer: bool
    name: str
    tensor: Tensor
    version: int | None

    def same(self) -> bool:
        """Whether nothing was written to the tensor."""
        return self.version is None or self.tensor._version == self.version


class _Made:
    """What lanes were made from; no tuple, in which torch.export would look for tensors.

    Args:
        name: of the first lanes.
        first: these.
        sources: whether each is a buffer, its name, it itself, and whether the lanes are those of what it is now.
    """

    __slots__ = ("first", "name", "sources")

    def __init__(self, name: str, first: Tensor | None, sources: list[tuple[bool, str, Tensor, bool]]) -> None:
        self.name, self.first = name, first
        self.sources = [
            _Source(is_buffer, key, tensor, -1 if not same else None if tensor.is_inference() else tensor._version)
            for is_buffer, key, tensor, same in sources
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy's tensors count from 0, and are as fresh as these
        known = [(source.is_buffer, source.name, source.tensor, source.same()) for source in self.sources]
        return _Made, (self.name, self.first, known)


class Origin(NamedTuple):
    """Names of the lanes, buffers that are not saved, and of the parameters or buffers that they follow from."""

    lanes: tuple[str, ...]
    sources: tuple[str, ...]


class OnLanes(nn.Module):
    """A module whose kernel reads lanes, which follow from its weights.

    Filling, load_state_dict and another device make them anew. They are also made anew at the next call after a weight
    was written to in place or another one was put in its place (torch.func.functional_call with a state_dict), unless
    the call is compiled: a compiled network has to be called once as it is.

    Attributes:
        origin: of the lanes.
    """

    origin: Origin
    _made: _Made | None = None

    def register_lanes(self, origin: Origin) -> None:
        """Register empty lanes."""
        self.origin = origin
        for name in origin.lanes:
            self.register_buffer(name, None, persistent=False)
        self.register_load_state_dict_post_hook(_make_lanes)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def make_lanes_(self) -> None:
        """Make the lanes anew."""
        self._buffers.update(zip(self.origin.lanes, self._lanes(), strict=True))
        self._note_lanes()

    def check_lanes_(self) -> bool:
        """Make the lanes anew if the weights have changed; False where the kernel has to do without them in this call.

        Lanes that were themselves exchanged, or taken away, are what the caller wants.
        """
        if is_compiling() or not self.stale():
            return True
        sources = self._sources()
        wanted = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        if wanted or not all(unwatched(source.detach()) for source in sources):
            return False  # torch.func's or a tracer's, or of a gradient: nothing of it may stay here
        with _LOCK:  # of threads that call a changed network at once, the first makes them, and the others use these
            if self.stale():
                self.make_lanes_()
        return True

    def stale(self) -> bool:
        """Whether the lanes are those of weights that the module no longer has."""
        made = self._made  # asked at every call of a layer
        if made is None:
            return True
        buffers = self._buffers
        if buffers[made.name] is not made.first:
            return False
        for is_buffer, name, then, version in made.sources:
            now = (buffers if is_buffer else self._parameters)[name]
            if now is not then or (version is not None and now._version != version):
                return True
        return False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OnLanes":
        """Move or convert as any module does, lanes along with their weights; another device has lanes of its own."""
        device, stale = self._sources()[0].device, self.stale()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._sources()[0].device != device:
            self.make_lanes_()
        elif not stale:
            self._note_lanes()
        return self

    def _lanes(self) -> list[Tensor | None]:
        raise NotImplementedError

    def _note_lanes(self) -> None:
        name, buffers = self.origin.lanes[0], self._buffers
        found = zip(self.origin.sources, self._sources(), strict=True)
        self._made = _Made(name, buffers[name], [(key in buffers, key, tensor, True) for key, tensor in found])

    def _sources(self) -> list[Tensor]:
        buffers, parameters = self._buffers, self._parameters
        found = [buffers[name] if name in buffers else parameters[name] for name in self.origin.sources]
        return found  # type: ignore[return-value]


def _make_lanes(layer: nn.Module, _: object = None) -> None:
    """Hook of load_state_dict."""
    assert isinstance(layer, OnLanes)
    layer.make_lanes_()
