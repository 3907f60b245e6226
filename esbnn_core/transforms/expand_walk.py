"""The state of a walk over a traced forward, and what it inserts between the operations: cuts and other orders."""

from collections.abc import Collection, Mapping

from torch import Tensor, fx

from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_calls import ELEMENTWISE_CALLS, call_origin
from esbnn_core.transforms.expand_classes import Beyond, Classes, Key
from esbnn_core.transforms.expand_layout import Layout, positions
from esbnn_core.transforms.expand_moves import POOLS
from esbnn_core.transforms.expand_places import Cut, Inserted, Places
from esbnn_core.transforms.expand_rules import can_be_widened, channels_held, is_spatial
from esbnn_core.transforms.expand_scope import Fact, has_channels, is_settled
from esbnn_core.transforms.expand_shapes import parameter_behind
from esbnn_core.transforms.expand_trace import Forward
from esbnn_core.units.conv import BinaryUnit


class Walk:
    """What is known so far.

    Attributes:
        facts: of each value; of a tensor a Layout, as if its class were carried.
        classes: of the tensors with channels, and of those of which nothing is known.
        layers: input and output of each layer, by its name.
        widened: output of each module with per-channel tensors, by its name.
        parameters: node of each parameter or buffer with one value a channel that the forward reads, by its name.
        attributes: node of each attribute that is a width, by its name.
        orders: order of the input of each layer and widened module, by its name.
        places: what is inserted between the operations.
        wanted: cuts that would keep a class from being nominal, for the next walk.
        unordered: cuts that would give an operation the order that it needs.

    Args:
        forward: what is walked over.
        expansion: tau and groups.
        cuts: by the tensor that they are after.
        fixed: names of the attributes that stay as they are.
    """

    def __init__(
        self, forward: Forward, expansion: Expansion, cuts: Mapping[fx.Node, Cut], fixed: Collection[str] = ()
    ) -> None:
        self.forward, self.expansion, self.cuts, self.fixed = forward, expansion, cuts, fixed
        self.facts: dict[Key, Fact] = {}
        self.classes = Classes()
        self.layers: dict[str, tuple[Key, Key]] = {}
        self.widened: dict[str, Key] = {}
        self.parameters: dict[str, fx.Node] = {}
        self.attributes: dict[str, fx.Node] = {}
        self.orders: dict[str, Tensor] = {}
        self.places = Places(forward.tracer.calls, forward.leaves)
        self.wanted: dict[fx.Node, Cut] = {}
        self.unordered: dict[fx.Node, Cut] = {}
        self._beyond: dict[fx.Node, Beyond] = {}
        self._nominal_modules: set[str] = set()
        self._seen: dict[tuple[Key, fx.Node], Layout] = {}  # of a tensor in another order, by its reader

    def key(self, node: fx.Node, reader: fx.Node) -> Key:
        """The tensor as a reader gets it."""
        beyond = self._beyond.get(node)
        return node if beyond is None or reader in self.cuts[node].inside else beyond

    def layout(self, key: Key) -> Layout:
        """Of a tensor with channels."""
        found = self.facts[key]
        assert isinstance(found, Layout)
        return found

    # modules of expand_'s own between two operations

    def _cut(self, node: fx.Node, cut: Cut) -> None:
        layout = self.facts.get(node)
        if not is_settled(layout) or (cut.made == "carried" and self.classes.reason(node) is None):
            return
        beyond = self._beyond[node] = Beyond(node)
        if cut.order is not None:
            self.facts[beyond] = layout.with_order(cut.order)
            self.classes.add(beyond, node)
            self.places.inserted[cut.name, "after"] = Inserted(node, "order", positions(layout.order, cut.order))
            return
        self.facts[beyond] = Layout.whole_copies(layout.roles, layout.channels, self.expansion.wide)
        self.classes.add(beyond)
        if cut.made == "nominal":
            self.classes.block(beyond, cut.reason)
        self.places.inserted[cut.name, "after"] = Inserted(node if cut.made == "nominal" else beyond, cut.made)

    def _cut_or_block(self, key: Key, reader: fx.Node, reason: str) -> None:
        """Give a reader that needs the nominal tensor copy 0 of each channel, or block the class of the tensor."""
        if self.classes.reason(key) is None and is_settled(self.facts[key]):
            node = key.node if isinstance(key, Beyond) else key
            if not self._copies_are_equal(node) and self.places.insert(key, reader, None):
                return
            self._want_cut(node, reason)
        self.classes.block(key, reason)

    def _want_cut(self, node: fx.Node, reason: str) -> None:
        """Ask for a cut after the tensor, or before operations that do the same with nominal tensors."""
        if node in self._beyond or self._copies_are_equal(node):
            return
        place = self.places.after(node)
        if place is not None:
            self.wanted.setdefault(node, Cut(place[0], "nominal", place[1], reason))
        elif self._works_on_any_width(node):
            for other in node.all_input_nodes:
                if is_settled(self.facts.get(other)):
                    self._want_cut(other, reason)

    def _works_on_any_width(self, node: fx.Node) -> bool:
        """Whether the operation has no tensors of its own, so that it can be in the nominal part."""
        if node.op == "call_module":
            module = self.forward.modules[str(node.target)]
            return channels_held(module) is None and (can_be_widened(module) or is_spatial(module))
        return node.op in ("call_function", "call_method")

    def _copies_are_equal(self, node: fx.Node) -> bool:
        """Whether the tensor is a layer's bare output: its copies differ from the first norm or slope on.

        Copy 0 of every channel of such a tensor holds C/tau different maps alone.
        """
        waiting, seen = [node], set[fx.Node]()
        while waiting:
            node = waiting.pop()
            name = str(node.target)
            if node.op == "call_module" and name in self.layers:
                if isinstance(self.forward.modules[name], BinaryUnit):
                    return False
            elif node.op == "get_attr" or (node.op == "call_module" and name in self.widened):
                return False
            else:
                before = [other for other in node.all_input_nodes if has_channels(self.facts.get(other))]
                waiting += [other for other in before if other not in seen]
                seen.update(before)
        return True

    def _reorder(self, node: fx.Node, reader: fx.Node, order: Tensor) -> bool:
        """Let a reader see a tensor in another order; False where no module of expand_'s own can be."""
        key = self.key(node, reader)
        layout = self._seen.get((key, reader), self.facts[key])
        if not is_settled(layout):
            return False
        parameter = parameter_behind(node, self.forward.reads)
        if parameter is not None:
            while True:  # its values move, and with them those of every view of it
                self.facts[node] = self.layout(node).with_order(order)
                if node is parameter:
                    return True
                node = node.all_input_nodes[0]
        moved = positions(layout.order, order)
        if not self.places.insert(key, reader, moved):
            if self._reorder_before(node, reader, moved):
                return True
            self._want_order(node, order)
            return False
        self._seen[key, reader] = layout.with_order(order)
        return True

    def _want_order(self, node: fx.Node, order: Tensor) -> None:
        """Ask for this order for all readers, in another walk: after the tensor or before what keeps its channels."""
        while node not in self.cuts:
            place = self.places.after(node)
            if place is not None:
                self.unordered[node] = Cut(place[0], "order", place[1], order=order)
                return
            if not self._is_alone(node):
                return
            node = node.all_input_nodes[0]

    def _reorder_before(self, node: fx.Node, reader: fx.Node, moved: Tensor) -> bool:
        """The same before operations on each channel alone, of which nothing else reads the result."""
        passed: list[fx.Node] = []
        while node not in self._beyond and self._is_alone(node) and set(node.users) == {reader}:
            passed.append(node)
            node, reader = node.all_input_nodes[0], node
            key = self.key(node, reader)
            if self.places.insert(key, reader, moved):
                self._seen[key, reader] = self.layout(key).with_order(self.layout(key).order[moved])
                for each in passed:
                    self.facts[each] = self.layout(each).with_order(self.layout(each).order[moved])
                return True
        return False

    def _is_alone(self, node: fx.Node) -> bool:
        """Whether the operation has one operand and no tensors of its own: its channels may be in any order."""
        if len(node.all_input_nodes) != 1 or not is_settled(self.facts.get(node.all_input_nodes[0])):
            return False
        if node.op == "call_module":
            return self._works_on_any_width(node)
        return node.op in ("call_function", "call_method") and call_origin(node)[1] in (*ELEMENTWISE_CALLS, *POOLS)
