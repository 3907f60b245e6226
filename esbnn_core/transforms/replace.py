"""The walk that swaps modules for others, under every name that they have."""

from collections.abc import Callable, Iterable, Iterator

from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.forwards import HOOKS
from esbnn_core.transforms.first_batch import FirstBatch


def replace_modules(
    model: nn.Module, replace: Callable[[str, nn.Module], nn.Module | None]
) -> Iterator[tuple[str, nn.Module]]:
    """Walk the children depth-first and swap modules for others.

    The walk goes on inside the new modules. A module with two names is replaced by the same new one under both.

    Args:
        model: changed in place, as the iterator is consumed.
        replace: (name, module) -> the new module, or None to keep it.

    Yields:
        Name and new module of each swap.
    """
    done: dict[nn.Module, nn.Module] = {}

    def walk(parent: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for key, child in list(parent._modules.items()):  # named_children() skips a module's second name
            if child is None:
                continue
            name = f"{prefix}{key}"
            new = done[child] if child in done else replace(name, child)
            if new is not None:
                done[child] = new
                setattr(parent, key, new)
                yield name, new
            yield from walk(child if new is None else new, f"{name}.")

    yield from walk(model, "")


def check_no_hooks(verb: str, modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise InputError for the first module with a hook, or an attribute forward, which would be dropped with it.

    Hooks of binarize_'s own watch over the first batch are no obstacle.

    Args:
        verb: that swaps the modules, for the message.
        modules: (name, module) of those that are swapped for others.
    """
    for name, module in modules:
        if "forward" in vars(module):
            raise InputError(
                f"{name or type(module).__name__} has a forward that was set on it, which {verb} would drop with the "
                f"module: delete the attribute first, or let a module around it do what that adds"
            )
        for kind in HOOKS:
            for hook in getattr(module, kind).values():
                if isinstance(getattr(hook, "__self__", None), FirstBatch):
                    continue
                raise InputError(
                    f"{name or type(module).__name__} has a {kind[1:-1].replace('_', ' ')}, which {verb} would drop "
                    f"with the module: remove it first (prune.remove, remove_weight_norm or remove_spectral_norm for "
                    f"those of torch.nn.utils), or register it after {verb}"
                )
