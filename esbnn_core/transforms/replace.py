"""The walk that swaps modules for others, under every name that they have."""

from collections.abc import Callable, Iterator

from torch import nn


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
