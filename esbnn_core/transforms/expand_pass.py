"""One walk over a traced forward: the layout of each tensor, and the classes of tensors that are carried together."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor, fx, nn

from esbnn_core.layers import BinaryLinear
from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_attributes import attribute, numbers
from esbnn_core.transforms.expand_calls import COMPARISONS, call_fact, call_origin
from esbnn_core.transforms.expand_classes import Key
from esbnn_core.transforms.expand_layout import MAP, Layout, Role, order_of_features
from esbnn_core.transforms.expand_places import Cut
from esbnn_core.transforms.expand_rules import (
    LAYERS,
    can_be_widened,
    channels_held,
    cuts_boxes,
    nominal_widths,
)
from esbnn_core.transforms.expand_scope import Fact, NoRule, Scope, Wants, combine, has_channels
from esbnn_core.transforms.expand_shapes import (
    channel_dim,
    fact_by_readers,
    is_gate_conv,
    layer_output_order,
    module_layout,
    needs_whole_copies,
    parameter_layout,
    reads_one_tensor,
)
from esbnn_core.transforms.expand_sizes import Size
from esbnn_core.transforms.expand_trace import Forward, describe_place
from esbnn_core.transforms.expand_walk import Walk

# how a reason begins that names an operation, for the operations after it to repeat
CONNECTED = "is connected to"


class Pass(Walk):
    """The walk, made by the constructor: arguments and attributes are those of Walk."""

    def __init__(
        self, forward: Forward, expansion: Expansion, cuts: Mapping[fx.Node, Cut], fixed: Collection[str] = ()
    ) -> None:
        super().__init__(forward, expansion, cuts, fixed)
        for node in forward.graph.nodes:
            self._visit(node)
            if node in cuts:
                self._cut(node, cuts[node])
        self._block_modules_that_forward_reads()

    # what the forward does, node by node

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._add_blocked(node, "is the input of the network")
        elif node.op == "get_attr":
            self._enter_parameter(node)
        elif node.target is attribute:
            self._enter_attribute(node)
        elif node.op == "output":
            for key in self._tensors(node):
                self._cut_or_block(key, node, "is an output of the network")
        elif node.op == "call_module":
            name = str(node.target)
            module = self.forward.modules[name]
            self._apply(
                node, lambda: self._apply_module(node, name, module), f"module {name} ({type(module).__name__})"
            )
        else:
            method = node.op == "call_method"
            called = f".{node.target}()" if method else getattr(node.target, "__name__", node.target)
            operation = f"{called} (fx node {node.name}, {describe_place(node)})"
            self._apply(node, lambda: self._apply_function(node), operation)

    def _tensors(self, node: fx.Node) -> list[Key]:
        """Inputs that are in a class."""
        return [key for other in node.all_input_nodes if (key := self.key(other, node)) in self.classes]

    def _apply(self, node: fx.Node, rule: Callable[[], None], operation: str) -> None:
        """Apply a rule, with tensors in other orders if it asks for them; else the operation is nominal."""
        plain: Fact = None
        for _ in range(2 * len(node.all_input_nodes) + 1):
            try:
                rule()
            except NoRule as stop:
                plain = stop.nominal
            except Wants as wants:
                plain = wants.nominal
                if any(self._reorder(other, node, order) for other, order in wants.ways):
                    continue
            else:
                return
            break
        self._stop(node, operation, plain)

    def _stop(self, node: fx.Node, operation: str, fact: Fact) -> None:
        """Enter the output of an operation without a rule: its inputs and its output are nominal."""
        reason = f"{CONNECTED} {operation}, through which expanded channels cannot pass"
        if node.op == "call_module":
            name = str(node.target)
            self._nominal_modules.add(name)
            ends = [*self.layers.get(name, ()), self.widened.get(name)]
            self._keep_plain(name, *(end for end in ends if end is not None))
        own, inputs = reason, self._tensors(node)
        for key in inputs:  # of several such operations in a row the first is named
            earlier = self.classes.reason(key)
            if earlier is not None and earlier.startswith(CONNECTED):
                own = reason = earlier
                break
            if earlier is not None and self.facts[key] is None:
                own = earlier
        for key in inputs:
            self._cut_or_block(key, node, reason)
        for source in self._sources(node):
            self.classes.block(source, reason)
        self._add_blocked(
            node, own, fact_by_readers(node, self.forward.modules, self.expansion.wide) if fact is None else fact
        )

    def _unite(self, keys: Sequence[Key]) -> None:
        for key in keys[1:]:
            self.classes.unite(keys[0], key)

    def _keep_plain(self, name: str, *ends: Key) -> None:
        """Block the ends of a module's calls, of which one is nominal: it changes for all of them or for none."""
        for end in ends:
            self.classes.block(end, f"belongs to {name}, of which one call is nominal")

    def _fact(self, other: fx.Node, reader: fx.Node) -> Fact:
        """What is known of an operand as the reader gets it."""
        key = self.key(other, reader)
        return self._seen.get((key, reader), self.facts[key])

    def _sources(self, node: fx.Node) -> list[Key]:
        """The tensors whose number of channels the operation reads: carried with it, or not at all."""
        found: list[Key] = []
        for other in node.all_input_nodes:
            read = self.facts[other]
            for size in read if isinstance(read, tuple) else (read,):
                if isinstance(size, Size) and size.changes:
                    found += [source for source in size.sources if source in self.classes]
        return found

    def _add(self, node: fx.Node, fact: Fact, *same: Key) -> None:
        """Enter a tensor or several, in the class of the tensors `same` if any are given."""
        reasons = [reason for key in same if (reason := self.classes.reason(key)) is not None]
        for key in same if reasons else ():
            if self.classes.reason(key) is None:  # one of several is nominal: so are the others here
                self._cut_or_block(key, node, reasons[0])
        self.facts[node] = fact
        nominal = [key for key in same if self.classes.reason(key) is not None]
        self.classes.add(node, *(nominal if reasons else same))

    def _add_blocked(self, node: fx.Node, reason: str, fact: Fact = None) -> None:
        """Enter a tensor that is never carried."""
        self.facts[node] = fact
        self.classes.add(node)
        self.classes.block(node, reason)

    def _enter_parameter(self, node: fx.Node) -> None:
        name = str(node.target)
        layout = parameter_layout(self.forward.model, name, self.expansion.wide)
        if layout is None:
            self._add_blocked(node, f"{CONNECTED} {name}, which the forward reads from the module")
        elif not layout.has_channels:
            self.facts[node] = layout
        elif name in self.parameters:
            self._add(node, self.facts[self.parameters[name]], self.parameters[name])
        else:
            self._add(node, layout)
            self.parameters[name] = node

    def _enter_attribute(self, node: fx.Node) -> None:
        """An attribute is multiplied where the tensors are carried whose width it is."""
        name, value, wide = str(node.args[0]), node.meta["value"], 1
        if name not in self.fixed:
            wide = self.expansion.wide
            self.classes.add(node, *(each for each in [self.attributes.get(name)] if each is not None))
            self.attributes[name] = node
        sizes = [Size(number, wide * number, None, (node,) if wide > 1 else ()) for number in numbers(value)]
        self.facts[node] = sizes[0] if isinstance(value, int) else tuple(sizes)

    def _apply_module(self, node: fx.Node, name: str, module: nn.Module) -> None:
        """Apply the rule of a module that reads one tensor."""
        if cuts_boxes(module):
            self._apply_boxes(node)
            return
        if not reads_one_tensor(node, module, self.facts):
            raise NoRule
        key = self.key(node.all_input_nodes[0], node)
        layout = self._seen.get((key, node), self.facts[key])
        readout = self.forward.readouts.get(name, 0)
        if not isinstance(layout, Layout):
            self._apply_to_unknown(node, name, module, key)
        elif not layout.has_channels:
            if channels_held(module) is not None or not can_be_widened(module):
                raise NoRule
            self.facts[node] = layout
        elif isinstance(module, LAYERS):
            self._apply_layer(node, name, module, key, layout)
        elif readout and layout.roles != MAP and readout % layout.channels == 0:
            self._add(node, layout)
            self.layers[name] = (key, node)
            self.orders[name] = order_of_features(layout.order, layout.channels, readout)
            self.classes.block(node, "is read by the classifier")
        elif is_gate_conv(module, layout):
            self._add(node, Layout.whole_copies(layout.roles, layout.channels, self.expansion.wide))
            self.layers[name], self.orders[name] = (key, node), layout.order
        elif can_be_widened(module):
            self._apply_widened(node, name, module, key, layout)
        else:
            self._add(node, module_layout(module, layout, self.expansion.wide), key)

    def _apply_boxes(self, node: fx.Node) -> None:
        """Enter what a module cuts out of maps, which are its first argument."""
        maps = list(node.args[0].values()) if isinstance(node.args[0], Mapping) else [node.args[0]]
        found = [(each, self._fact(each, node)) for each in maps if isinstance(each, fx.Node)]
        if not found or any(not isinstance(fact, Layout) or fact.roles != MAP for _, fact in found):
            raise NoRule
        self._add(node, combine(found), *(self.key(each, node) for each, _ in found))

    def _apply_to_unknown(self, node: fx.Node, name: str, module: nn.Module, key: Key) -> None:
        """A layer knows its output whatever it reads; the class of its input is nominal."""
        if key not in self.classes or not isinstance(module, LAYERS):
            raise NoRule
        linear = isinstance(module, nn.Linear | BinaryLinear)
        roles: tuple[Role, ...] = ("batch", "channels") if linear else MAP
        self._add(node, Layout.whole_copies(roles, nominal_widths(module)[1], self.expansion.wide))
        if linear:  # of how many dimensions?
            self.classes.block(node, "has channels in an unknown place (put flatten(1) before linear layers)")
        self._enter_layer(node, name, key)

    def _enter_layer(self, node: fx.Node, name: str, key: Key) -> None:
        if name in self._nominal_modules:
            self._keep_plain(name, key, node)
        first_input, first_output = self.layers.setdefault(name, (key, node))
        self.classes.unite(first_input, key)  # a layer called twice is expanded for both calls or for none
        self.classes.unite(first_output, node)

    def _apply_layer(self, node: fx.Node, name: str, layer: nn.Module, key: Key, layout: Layout) -> None:
        """Enter the output of a layer."""
        linear = isinstance(layer, nn.Linear | BinaryLinear)
        inputs, outputs = nominal_widths(layer)
        dim = len(layout.roles) - 1 if linear else 1
        if layout.dim != dim or (not linear and (layout.is_flat or len(layout.roles) != 4)):
            raise NoRule
        if inputs != layout.channels and not (layout.is_flat and inputs % layout.channels == 0):
            raise NoRule
        order = order_of_features(layout.order, layout.channels, inputs) if layout.is_flat else layout.order
        roles: tuple[Role, ...] = (*layout.roles[:-1], "channels") if linear else MAP
        self._same_order(name, node, layout, order)
        self._add(node, Layout.of_order(roles, layer_output_order(layer, self.expansion), outputs))
        self._enter_layer(node, name, key)

    def _apply_widened(self, node: fx.Node, name: str, module: nn.Module, key: Key, layout: Layout) -> None:
        """Enter the output of a module that treats each channel alone, or normalises over them."""
        held = channels_held(module)
        if held is None:
            self._add(node, layout, key)
            return
        dim = channel_dim(module) % len(layout.roles)
        flat = layout.is_flat and held % layout.channels == 0
        if layout.dim != dim or (held != layout.channels and not flat):
            raise NoRule
        if needs_whole_copies(module) and not layout.has_whole_copies:
            raise Wants((node.all_input_nodes[0], Layout.whole_copies(layout.roles, held, self.expansion.wide).order))
        order = order_of_features(layout.order, layout.channels, held) if flat else layout.order
        self._same_order(name, node, layout, order)
        self._add(node, layout, key)
        if name in self._nominal_modules:
            self._keep_plain(name, node)
        self.classes.unite(self.widened.setdefault(name, node), node)

    def _same_order(self, name: str, node: fx.Node, layout: Layout, order: Tensor) -> None:
        """Remember the order of a module's input; ask for the first call's order at later calls."""
        first = self.orders.setdefault(name, order)
        if len(first) != len(order) or not (first == order).all():
            if layout.is_flat:
                raise NoRule
            raise Wants((node.all_input_nodes[0], first))

    def _apply_function(self, node: fx.Node) -> None:
        """Apply the rule of a function or method."""
        package, name = call_origin(node)

        scope = Scope(lambda other: self._fact(other, node), lambda other: self.key(other, node), self.expansion.wide)
        fact = call_fact(node, package, name, scope)
        if not has_channels(fact):
            self.facts[node] = fact
            if name in COMPARISONS:
                self._unite(self._sources(node))
            return
        inputs = [key for key in self._tensors(node) if has_channels(self.facts[key])]
        self._add(node, fact, *inputs, *self._sources(node))

    def _block_modules_that_forward_reads(self) -> None:
        """Keep a module plain whose tensors the forward reads itself, as `self.conv.weight`."""
        layers = [(name, end) for name, ends in self.layers.items() for end in ends]
        for node in self.forward.graph.nodes:
            read = str(node.target)
            for name, end in [*layers, *self.widened.items()] if node.op == "get_attr" else ():
                if read.startswith(f"{name}."):
                    reason = f"belongs to {name}, whose {read} the forward reads"
                    self.classes.block(end, reason)
                    if node in self.classes:
                        self.classes.block(node, reason)
