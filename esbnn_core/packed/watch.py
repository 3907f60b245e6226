"""What tells whether modules whose work is done in their place are still the ones that they were.

It is asked at every call of a network, between layers that fill the caches: it looks at as few objects as it can.
"""

from collections.abc import Iterable
from operator import is_

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Watch:
    """Modules, their children, their tensors and some of their attributes as they are now.

    Args:
        modules: whose work is done in their place.
        buffers: of these, the ones whose buffers are read.
        more: further tensors that are read, each with the dict and the name under which its module has it.
        constants: attributes that are read, each with its module and its name.
        owners: further modules whose children are compared.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        buffers: Iterable[nn.Module] = (),
        more: Iterable[tuple[dict[str, Tensor | None], str]] = (),
        constants: Iterable[tuple[nn.Module, str]] = (),
        owners: Iterable[nn.Module] = (),
    ) -> None:
        self.modules = list(modules)
        self.types = list(map(type, self.modules))
        families = (*self.modules, *owners)
        self.children = [(m.__dict__, list(m._modules.values())) for m in families if m._modules]
        self.buffers = [(m._buffers, list(m._buffers.values())) for m in buffers]
        self.more = [(of, name, of[name]) for of, name in more]
        self.tensors = [
            t for t in (*(t for _, held in self.buffers for t in held), *(t for *_, t in self.more)) if t is not None
        ]
        self.addresses = list(map(Tensor.data_ptr, self.tensors))
        self.constants = [(module.__dict__, name, module.__dict__.get(name)) for module, name in constants]
        self.free = -1
        self.hooked()

    def hooked(self) -> bool:
        """Whether a call of one of the modules would do more than the forward of its class, or another one.

        torch numbers hooks as they are registered: as long as no number is gone nothing has to be looked at.
        """
        registered = RemovableHandle.next_id
        if registered == self.free:
            return False
        held = [module.__dict__ for module in self.modules]
        if any(d["_forward_hooks"] or d["_forward_pre_hooks"] or "forward" in d for d in held):
            return True
        self.free = registered
        return False

    def same(self) -> bool:
        """Whether modules, children and attributes are the same, and every tensor is the same one at the same place."""
        return (
            all(all(map(is_, of.values(), held)) and len(of) == len(held) for of, held in self.buffers)
            and all(of[name] is held for of, name, held in self.more)
            and all(of.get(name) is held for of, name, held in self.constants)
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
            and list(map(type, self.modules)) == self.types
            and all(list(of["_modules"].values()) == children for of, children in self.children)
        )


def hooked(*modules: nn.Module) -> bool:
    """Whether a call of one of the modules would do more than its class's forward."""
    return Watch(modules).hooked()
