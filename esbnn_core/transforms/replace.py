"""The walk that swaps modules for others, whatever names they are reached by."""

from collections.abc import Callable, Iterator

from torch import nn


def replace_modules(
    model: nn.Module, replace: Callable[[str, nn.Module], nn.Module | None]
) -> Iterator[tuple[str, nn.Module]]:
    """Walk the children depth-first and swap each module for which `replace` gives another; yields what was swapped.

    The walk goes on inside what was swapped in. A module that is reached by two names is replaced by one and the same.
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
