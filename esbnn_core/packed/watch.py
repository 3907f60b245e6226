"""What tells whether modules whose work is done in their place are still the ones that they were.

It is asked at every call of a network, between layers that fill the caches: it looks at as few objects as it can.
"""

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esbnn_core.packed.lanes import OnLanes


class Watch:
    """Modules, their children, their buffers and some of their attributes as they are now.

    Args:
        modules: whose work is done in their place.
        buffers: of these, the ones whose buffers are compared, and where they are, as they are read.
        unread: names of buffers that are only compared.
        more: further tensors that are read, each with the dict and the name under which its module has it.
        constants: attributes that are read, each with its module and its name: whole numbers, tuples of them, modules.
        owners: further modules whose children are compared.

    Of a module on lanes it is also told whether the lanes are those of its weights.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        buffers: Iterable[nn.Module] = (),
        unread: Collection[str] = (),
        more: Iterable[tuple[dict[str, Tensor | None], str]] = (),
        constants: Iterable[tuple[nn.Module, str]] = (),
        owners: Iterable[nn.Module] = (),
    ) -> None:
        self.modules = list(modules)
        self.types = list(map(type, self.modules))
        self.families: list[dict[str, Any]] = [m._modules for m in (*self.modules, *owners) if m._modules]
        self.children = list(_values(self.families))
        self.shelves: list[dict[str, Any]] = [module._buffers for module in buffers]
        self.buffers = list(_values(self.shelves))
        self.more = [(of, name, of[name]) for of, name in more]
        read = (t for shelf in self.shelves for name, t in shelf.items() if name not in unread)
        self.tensors = [t for t in (*read, *(t for *_, t in self.more)) if t is not None]
        self.addresses = list(map(Tensor.data_ptr, self.tensors))
        places = [(module.__dict__, name) for module, name in constants]
        self.holders, self.names = [of for of, _ in places], [name for _, name in places]
        self.constants = list(map(dict.get, self.holders, self.names))
        self.on_lanes = [module for module in self.modules if isinstance(module, OnLanes)]
        self.free = -1

    def hooked(self) -> bool:
        """As the function `hooked` of the modules.

        torch numbers hooks as they are registered: as long as no number is gone nothing has to be looked at.
        """
        registered = RemovableHandle.next_id
        if registered == self.free:
            return False
        if hooked(*self.modules):
            return True
        self.free = registered
        return False

    def same(self) -> bool:
        """Whether modules, children and attributes are the same, and every tensor is the same one at the same place."""
        # each line is one loop outside the interpreter
        now = list(_values(self.shelves))
        return (
            len(now) == len(self.buffers)
            and all(map(is_, now, self.buffers))
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
            and list(_values(self.families)) == self.children
            and list(map(type, self.modules)) == self.types
            and list(map(dict.get, self.holders, self.names)) == self.constants
            and all(of[name] is held for of, name, held in self.more)
            and not any(map(OnLanes.stale, self.on_lanes))
        )


def _values(dicts: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def hooked(*modules: nn.Module) -> bool:
    """Whether a call of one of the modules would do more than the forward of its class, or another one."""
    held = [module.__dict__ for module in modules]
    return any(d["_forward_hooks"] or d["_forward_pre_hooks"] or "forward" in d for d in held)
