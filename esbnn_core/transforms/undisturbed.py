"""A network that a trace leaves as it was.

Some forwards keep what they have computed: timm's LeViT stores its attention biases in a dict by device. Under
torch.fx they would store stand-ins for tensors, which the next trace, and the network itself, would then find.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore every attribute of every module afterwards, and what its lists, dicts and sets hold.

    Args:
        model: whose forward is followed inside; values of tensors are not restored.
    """
    before = [(module, dict(vars(module)), _contents(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            now = vars(module)
            if _differ(now, attributes):
                now.clear()
                now.update(attributes)
            for held, content in contents:
                if isinstance(held, dict):
                    if _differ(held, content):
                        held.clear()
                        held.update(content)
                elif isinstance(held, list):
                    held[:] = content
                else:
                    held.clear()
                    held.update(content)


def _contents(value: Any, depth: int = 4) -> list[tuple[Any, Any]]:
    """The containers in a value, those in containers too, with copies."""
    if depth == 0 or not isinstance(value, dict | list | set):
        return []
    found = [(value, value.copy())]
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list | set):  # asked here too: most of the many values are none
            found += _contents(item, depth - 1)
    return found


def _differ(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return [*one] != [*other] or any(map(operator.is_not, one.values(), other.values()))
