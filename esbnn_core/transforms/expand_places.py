"""Places in a forward for modules of expand_'s own.

The code of a forward stays as it is, so they come before or after a module that it calls.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx

from esbnn_core.transforms.expand_classes import Beyond, Key
from esbnn_core.transforms.record import Call

Place = tuple[str, Literal["before", "after"]]


@dataclass(frozen=True, eq=False)
class Inserted:
    """A module of expand_'s own.

    Attributes:
        key: the tensor that has to be carried for it to be there.
        made: "nominal" takes copy 0 of each channel, "carried" tiles, "order" takes `positions`.
        positions: of the channels, for "order".
    """

    key: Key
    made: Literal["nominal", "carried", "order"]
    positions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Cut:
    """A place after which all readers of a tensor see it nominal, carried where it was nominal, or in another order.

    Attributes:
        name: of the module.
        made: as Inserted.
        inside: readers of the tensor before that place.
        reason: why the tensor is nominal there, "" where it is carried.
        order: that all readers see, for "order".
    """

    name: str
    made: Literal["nominal", "carried", "order"]
    inside: frozenset[fx.Node]
    reason: str = ""
    order: Tensor | None = None


class Places:
    """What is inserted where.

    Attributes:
        inserted: by place.

    Args:
        calls: of the modules that the trace entered.
        leaves: how often each module that is one node is called.
    """

    def __init__(self, calls: Sequence[Call], leaves: "Counter[str]") -> None:
        self.inserted: dict[Place, Inserted] = {}
        self._leaves = leaves
        entered = Counter(call.name for call in calls)
        self._calls = [call for call in calls if entered[call.name] == 1]  # a module inside another comes first

    def insert(self, key: Key, reader: fx.Node, positions: Tensor | None) -> bool:
        """Put a selection of channels between a tensor and one reader; False if no module call is there alone.

        Args:
            key: the tensor.
            reader: the operation that reads it.
            positions: of the channels that it takes, in order; None for copy 0 of each channel.
        """
        for place in self._between(key, reader, nominal=positions is None):
            if place not in self.inserted:
                self.inserted[place] = Inserted(key, "nominal" if positions is None else "order", positions)
                return True
        return False

    def _between(self, key: Key, reader: fx.Node, nominal: bool) -> Iterator[Place]:
        """Places that the tensor passes on its way to this reader, and on its way to no other."""
        node = key.node if isinstance(key, Beyond) else key
        others = {user for user in node.users if user is not reader and not _reads_shape(user, places_only=nominal)}
        name = str(reader.target)
        if reader.op == "call_module" and self._leaves[name] == 1 and len(reader.all_input_nodes) == 1:
            yield name, "before"
        for call in self._calls:
            if call.single and call.inputs == (node,) and reader in call.inside and not others & call.inside:
                yield call.name, "before"
        if isinstance(key, Beyond):
            return
        if node.op == "call_module" and self._leaves[str(node.target)] == 1 and not others:
            yield str(node.target), "after"
        for call in self._calls_that_return(node):
            if reader not in call.inside and others <= call.inside:
                yield call.name, "after"

    def after(self, node: fx.Node) -> tuple[str, frozenset[fx.Node]] | None:
        """The innermost module after which all readers of the tensor can be given another, and those before it."""
        name = str(node.target)
        if node.op == "call_module" and self._leaves[name] == 1 and (name, "after") not in self.inserted:
            return name, frozenset()
        for call in self._calls_that_return(node):
            if (call.name, "after") not in self.inserted:
                return call.name, call.inside
        return None

    def boundaries(self) -> dict[fx.Node, tuple[str, frozenset[fx.Node]]]:
        """Outputs of modules that the trace entered, each with the name of the outermost one and its readers inside."""
        found = [(call.output, call) for call in self._calls if call.output in call.inside]
        return {node: (call.name, call.inside) for node, call in found if node is not None}

    def _calls_that_return(self, node: fx.Node) -> Iterator[Call]:
        for call in self._calls:
            if call.output is node and node in call.inside:
                yield call


def _reads_shape(user: fx.Node, places_only: bool) -> bool:
    """Whether the user reads sizes of the tensor alone, and with places_only not its number of channels."""
    name = str(getattr(user.target, "__name__", user.target))
    if name == "dim" or (name == "getattr" and user.args[1] in ("ndim", "dtype", "device")):
        return True
    if name != "size" and not (name == "getattr" and user.args[1] == "shape"):
        return False
    allowed = (0, 2, 3, -1, -2)
    if not places_only or (len(user.args) == 2 and name == "size"):
        return not places_only or user.args[1] in allowed
    for part in user.users:
        if str(getattr(part.target, "__name__", "")) != "getitem" or (part.users and part.args[1] not in allowed):
            return False
    return True
