"""What the rules of expand_ read of a call: its arguments, and what is known of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from esbnn_core.transforms.expand_classes import Key
from esbnn_core.transforms.expand_layout import Layout, Role
from esbnn_core.transforms.expand_sizes import Size, constant

Fact = Any
"""What is known of a value: a Layout, a Size, a tuple of facts, or None for a tensor of which nothing is known."""


class NoRule(Exception):
    """The operation has no rule: its tensors cannot be carried through it.

    Attributes:
        nominal: the fact of its value in the nominal network, where that is known.
    """

    def __init__(self, nominal: Fact = None) -> None:
        super().__init__()
        self.nominal = nominal


class Wants(Exception):
    """The operation needs a tensor in another order.

    Attributes:
        ways: (operand, order) each of which would do, in the order of preference.
        nominal: as NoRule.
    """

    def __init__(self, *ways: tuple[fx.Node, Tensor], nominal: Fact = None) -> None:
        super().__init__()
        self.ways, self.nominal = ways, nominal


@dataclass(frozen=True)
class Scope:
    """What the rules read.

    Attributes:
        fact: of a node, as the operation sees it.
        key: of a node, likewise.
        wide: tau*g.
    """

    fact: Callable[[fx.Node], Fact]
    key: Callable[[fx.Node], Key]
    wide: int

    def of(self, value: object) -> Fact:
        """The fact of an argument: a node, a number, a list of them; anything else is returned as it is."""
        if isinstance(value, fx.Node):
            return self.fact(value)
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return constant(value)
        if isinstance(value, list | tuple):
            return tuple(self.of(item) for item in value)
        if isinstance(value, slice):
            return slice(*(self.of(part) for part in (value.start, value.stop, value.step)))
        return value


class Arguments:
    """Arguments of a call by position or name."""

    def __init__(self, node: fx.Node, scope: Scope) -> None:
        self.node, self.scope = node, scope
        kwargs = dict(node.kwargs)
        first = next((kwargs.pop(key) for key in ("input", "tensors", "self") if key in kwargs), None)
        self.raw: list[Any] = [*node.args] if node.args else [first]
        self.named = kwargs

    def get(self, at: int, name: str, default: Any = None) -> Any:
        """The fact of one argument; numbers in the code as ints where they are not sizes."""
        found = self.named.get(name, self.raw[at] if len(self.raw) > at else default)
        return self.scope.of(found)

    def number(self, at: int, name: str, default: Any = None) -> Any:
        """An argument that must be in the code; NoRule for one that the forward calculates."""
        found = self.named.get(name, self.raw[at] if len(self.raw) > at else default)
        if any(isinstance(item, fx.Node) for item in (found if isinstance(found, list | tuple) else (found,))):
            raise NoRule
        return found

    def rest(self, name: str) -> list[Any]:
        """Facts of all arguments from the second on, given one by one or as one list."""
        found = self.named.get(name, self.raw[1:])
        if isinstance(found, list | tuple) and len(found) == 1:
            found = found[0]
        fact = self.scope.of(found)
        return list(fact) if isinstance(fact, tuple) else [fact]


def is_number(fact: Fact) -> bool:
    """Whether the value is a number, or a shape."""
    return isinstance(fact, Size) or (isinstance(fact, tuple) and all(is_number(item) for item in fact))


def has_channels(fact: Fact) -> bool:
    """Whether the value is a tensor with channels, or holds one."""
    if isinstance(fact, tuple):
        return any(has_channels(item) for item in fact)
    return isinstance(fact, Layout) and fact.has_channels


def is_settled(fact: Fact) -> TypeGuard[Layout]:
    """Whether the value is a tensor with its channels in one dimension, and nothing else in it."""
    return isinstance(fact, Layout) and fact.dim is not None and not fact.is_flat


def tensors_of(node: fx.Node, scope: Scope) -> list[tuple[fx.Node, Layout]]:
    """Operands that are tensors, with their layouts; NoRule if nothing is known of one."""
    found = []
    for other in node.all_input_nodes:
        fact = scope.fact(other)
        if isinstance(fact, Layout):
            found.append((other, fact))
        elif not is_number(fact) or any(size.changes for size in (fact if isinstance(fact, tuple) else (fact,))):
            raise NoRule
    return found


def combine(operands: Sequence[tuple[fx.Node, Layout]]) -> Layout:
    """The broadcast of several tensors, whose channels must be in the same places."""
    if not operands:
        raise NoRule
    number = max(len(layout.roles) for _, layout in operands)
    ranks: tuple[Role, ...] = ("one", "space", "batch", "channels", "flat")
    roles: list[Role] = []
    for dim in range(number):
        found = [layout.roles[at] for _, layout in operands if (at := dim - number + len(layout.roles)) >= 0]
        kinds = {role for role in found if role != "one"}
        if len(kinds) > 1:
            raise NoRule
        roles.append(max(found, key=ranks.index))
    wide = [(node, layout) for node, layout in operands if layout.has_channels]
    if not wide:
        return Layout(tuple(roles))
    first, shapes = wide[0][1], {tuple(layout.nominal.shape) for _, layout in wide if layout.nominal is not None}
    kept = [i for i, role in enumerate(roles) if role in ("channels", "flat")]
    if len(shapes) > 1 or len(kept) != len(first.channel_dims):
        raise NoRule
    base_node, base = next((pair for pair in wide if pair[1].has_whole_copies), wide[0])
    for node, layout in wide:
        if not torch.equal(layout.order, base.order):
            if layout.dim is None or base.dim is None:
                raise NoRule
            raise Wants((node, base.order), (base_node, layout.order))
    return base.with_roles(roles)
