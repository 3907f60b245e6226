"""Numbers of a recorded forward that remember the sizes of tensors that they were calculated from."""

import operator
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import fx


class Writer(Protocol):
    """What writes the arithmetic down.

    Attributes:
        busy: whether a leaf runs, whose arithmetic is its own.
    """

    busy: bool

    def enter_number(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node:
        """The node of a function of numbers."""


def as_number(value: float) -> float:
    """Stands in a graph for a number that goes where it can no longer be followed."""
    return float(value)


class _Remembers:
    """A number with the node that makes it. Comparisons are written down too: a branch may depend on them."""

    writer: Writer
    make: Callable[[], fx.Node]

    @property
    def node(self) -> fx.Node:
        """Entered where it is first used."""
        return self.make()


class TracedInt(_Remembers, int):
    """A whole number that remembers."""


class TracedFloat(_Remembers, float):
    """Any other number that remembers."""


Traced = TracedInt | TracedFloat
T = TypeVar("T")


def plain(value: Any) -> Any:
    """The number itself; anything else as it is."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def traced(value: Any, writer: Writer, make: Callable[[], fx.Node]) -> Any:
    """The number with what gives its node; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    new = TracedInt(value) if isinstance(value, int) else TracedFloat(value)
    new.writer, new.make = writer, make
    return new


def _arithmetic(function: Callable[..., Any], swapped: bool) -> Callable[..., Any]:
    def method(self: Traced, *others: Any) -> Any:
        if any(not isinstance(other, int | float) for other in others):
            return NotImplemented
        operands = (*others, self) if swapped else (self, *others)
        value = function(*map(plain, operands))
        if self.writer.busy:
            return value
        node = self.writer.enter_number(function, operands)
        node.meta["value"] = value
        return traced(value, self.writer, lambda: node)

    return method


def _float(self: Traced) -> float:
    if not self.writer.busy:
        self.writer.enter_number(as_number, (self,))
    return float(plain(self))


for _kind in (TracedInt, TracedFloat):
    for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
        setattr(_kind, f"__{_name}__", _arithmetic(getattr(operator, _name), swapped=False))
        setattr(_kind, f"__r{_name}__", _arithmetic(getattr(operator, _name), swapped=True))
    for _name in ("neg", "eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", _arithmetic(getattr(operator, _name), swapped=False))
    setattr(_kind, "__float__", _float)  # noqa: B010
    setattr(_kind, "__hash__", _kind.__mro__[2].__hash__)  # noqa: B010
