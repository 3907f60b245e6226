"""Which tensors of a network can be carried expanded: the analysis behind expand_.

The forward is traced with torch.fx. Tensors that must have the same width (the two sides of an addition, the input and
output of a BatchNorm) form a class. A class is carried at tau*g times its nominal width unless something in it depends
on the number of channels (torch.cat, view, GroupNorm, the network's own input and output).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryLinear
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_rules import (
    BINARY,
    ELEMENTWISE_CALLS,
    LAYERS,
    SPACE_DIMS,
    SPATIAL,
    SPATIAL_CALLS,
    Layout,
    Tracer,
    call_origin,
    can_be_widened,
    channels_held,
    find_obstacle,
    is_flatten,
    nominal_widths,
    reads_no_channels,
)
from esbnn_core.units.conv import BinaryUnit


@dataclass(frozen=True)
class ESConfig:
    """What expand_ makes of a network.

    Attributes:
        tau: expansion factor.
        groups: g of the convolutions.
        copy_spread: of the RSign shifts, as ESBinaryConv2d.
    """

    tau: int = 2
    groups: int = 1
    copy_spread: float = 0.0

    @property
    def expansion(self) -> Expansion:
        """The same as an Expansion.

        Raises:
            InputError: tau or groups is not a whole number of at least 1.
        """
        return Expansion(self.tau, self.groups, self.copy_spread)


@dataclass(frozen=True)
class ExpansionPlan:
    """What expand_ does with the layers of a network.

    Attributes:
        expanded: names of the layers that become expand-shrink ones: binary ones, and real convolutions between them.
        left: name -> reason for every binary layer that stays plain, and every real convolution with groups among
            expanded layers (it reads the first C channels, and its output is tiled).
    """

    expanded: tuple[str, ...]
    left: Mapping[str, str]


# how a reason begins that names an operation, for the operations after it to repeat
_CONNECTED = "is connected to"


class WidthGraph:
    """The tensors of a traced forward in classes of equal width, and which classes are carried.

    Attributes:
        modules: by name.
        layers: input and output of each layer, by its name.
        widened: output of each module with per-channel tensors, by its name.
        exits: output of each module after which only the first C channels go on, by its name.
        readouts: input features of each real classifier, by the name of its first module.
        width: nominal channels of a tensor, None where unknown.

    Args:
        model: the network; it is not changed.

    Raises:
        InputError: torch.fx cannot trace the forward.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        graph = _trace(model)
        self.layers: dict[str, tuple[fx.Node, fx.Node]] = {}
        self.widened: dict[str, fx.Node] = {}
        self.exits: dict[str, fx.Node] = {}
        self.width: dict[fx.Node, int | None] = {}
        self._layout: dict[fx.Node, Layout] = {}  # of tensors alone: a number or a shape has none
        self._parent: dict[fx.Node, fx.Node] = {}  # union-find of the classes
        self._blocked: dict[fx.Node, str] = {}  # why a class is nominal, by its root
        self._calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self.readouts = dict(self._find_readouts(graph))
        for node in graph.nodes:
            self._visit(node)
        self._block_modules_that_forward_reads(graph)
        self._live = self._find_live_classes()

    def is_carried(self, node: fx.Node) -> bool:
        """Whether the tensor is carried at tau*g times its nominal width."""
        return self._root(node) in self._live and self._root(node) not in self._blocked

    def plan(self) -> ExpansionPlan:
        """Which layers take the expand-shrink form, and why binary ones do not."""
        expanded, left = [], {}
        covered: set[nn.Module] = set()
        for name, ends in self.layers.items():
            module = self.modules[name]
            covered.update(module.modules())
            reason = self._reason_to_stay(name)
            inside = all(self.is_carried(end) for end in ends)
            if reason is None and inside:
                expanded.append(name)
            elif reason is not None and (isinstance(module, BINARY) or (inside and isinstance(module, nn.Conv2d))):
                left[name] = reason
        for name, module in self.modules.items():
            if isinstance(module, BinaryLayer) and module not in covered:
                left[name] = "the traced forward does not call it as a module"
        return ExpansionPlan(tuple(expanded), left)

    # classes of tensors

    def _root(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _add(self, node: fx.Node, layout: Layout, width: int | None, *same: fx.Node) -> None:
        """Enter a tensor, in the class of the tensors `same` if any are given."""
        self._parent[node], self._layout[node], self.width[node] = node, layout, width
        for other in same:
            self._unite(other, node)
        if layout is None:
            self._block(node, "has channels in an unknown place (put flatten(1) before linear layers)")

    def _add_blocked(self, node: fx.Node, reason: str) -> None:
        """Enter a tensor that is never carried."""
        self._add(node, None, None)
        self._blocked[node] = reason

    def _unite(self, one: fx.Node, other: fx.Node) -> None:
        """Make one class of the classes of two tensors."""
        kept, gone = self._root(one), self._root(other)
        if kept is not gone:
            self._parent[gone] = kept
            if gone in self._blocked:
                self._block(kept, self._blocked[gone])

    def _block(self, node: fx.Node, reason: str) -> None:
        """Keep the class of a tensor nominal; the first reason stays."""
        self._blocked.setdefault(self._root(node), reason)

    def _cut_or_block(self, node: fx.Node, reason: str) -> None:
        """Give a reader that needs the nominal width the first C channels of `node`, or block the class of `node`.

        Cutting needs one module that made the tensor, in one call and for this reader alone.
        """
        name = str(node.target)
        alone = node.op == "call_module" and self._calls[name] == 1 and len(node.users) == 1
        known = self._layout[node] is not None and self.width[node] is not None
        if alone and known and not self._copies_are_equal(node):
            self.exits[name] = node
        else:
            self._block(node, reason)

    def _copies_are_equal(self, node: fx.Node) -> bool:
        """Whether the tensor is a layer's bare output: its copies differ from the first norm or slope on.

        The first C channels of such a tensor hold C/tau different maps alone.
        """
        while node.op == "call_module" and not {str(node.target)} & {*self.layers, *self.widened}:
            node = node.all_input_nodes[0]
        name = str(node.target)
        return name in self.layers and not isinstance(self.modules[name], BinaryUnit)

    # what the forward does, node by node

    def _visit(self, node: fx.Node) -> None:
        inputs = [other for other in node.all_input_nodes if other in self._layout]
        if node.op == "placeholder":
            self._add_blocked(node, "is the input of the network")
        elif node.op == "get_attr":
            self._add_blocked(node, f"{_CONNECTED} {node.target}, which the forward reads from the module")
        elif node.op == "output":
            for other in inputs:
                self._cut_or_block(other, "is an output of the network")
        elif node.op == "call_module":
            name = str(node.target)
            single = len(inputs) == 1 and len(node.args) + len(node.kwargs) == 1
            if not single or not self._apply_module(node, name, self.modules[name], inputs[0]):
                self._stop(node, inputs, f"module {name} ({type(self.modules[name]).__name__})")
        elif not self._apply_function(node, inputs):
            method = node.op == "call_method"
            called = f".{node.target}()" if method else getattr(node.target, "__name__", node.target)
            self._stop(node, inputs, f"{called} (fx node {node.name}, {_describe_place(node)})")

    def _stop(self, node: fx.Node, inputs: list[fx.Node], operation: str) -> None:
        """Enter the output of an operation without a rule: its inputs and its output are nominal."""
        reason = f"{_CONNECTED} {operation}, through which expanded channels cannot pass"
        for other in inputs:  # of several such operations in a row the first is named
            earlier = self._blocked.get(self._root(other), "") if self._layout[other] is None else ""
            reason = earlier if earlier.startswith(_CONNECTED) else reason
        for other in inputs:
            self._cut_or_block(other, reason)
        self._add_blocked(node, reason)

    def _apply_module(self, node: fx.Node, name: str, module: nn.Module, x: fx.Node) -> bool:
        """Apply the rule of a module with one tensor as input; False if it has none."""
        layout, width = self._layout[x], self.width[x]
        if isinstance(module, LAYERS):
            return self._apply_layer(node, name, module, x)
        if name in self.readouts and layout != "map":
            self._add(node, layout, self.readouts[name])
            self.layers[name] = (x, node)
            self._block(node, "is read by the classifier")
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self._apply_flatten(node, x)
        elif isinstance(module, SPATIAL) and layout != "flat":
            self._add(node, layout, width, x)
        elif can_be_widened(module):
            channels = channels_held(module)
            misplaced = layout == "map" and getattr(module, "channel_dim", 1) != 1
            if channels is not None and (width not in (None, channels) or misplaced):
                return False
            self._add(node, layout, width if channels is None else channels, x)
            if channels is not None:
                self._unite(self.widened.setdefault(name, node), node)
        else:
            return False
        return True

    def _apply_layer(self, node: fx.Node, name: str, layer: nn.Module, x: fx.Node) -> bool:
        """Enter the output of a layer; False if its input has the wrong layout."""
        linear = isinstance(layer, nn.Linear | BinaryLinear)
        if self._layout[x] == ("map" if linear else "flat"):
            return False
        self._add(node, self._layout[x] if linear else "map", nominal_widths(layer)[1])
        first_input, first_output = self.layers.setdefault(name, (x, node))
        self._unite(first_input, x)  # a layer called twice is expanded for both calls or for none
        self._unite(first_output, node)
        return True

    def _apply_function(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Apply the rule of a function or method; False if it has none."""
        package, name = call_origin(node)
        if package not in ("torch", "_operator", "builtins"):
            return False
        if not inputs:  # arithmetic on sizes
            return package in ("_operator", "builtins") and bool(node.all_input_nodes)
        x = inputs[0]
        layout, width = self._layout[x], self.width[x]
        args: dict[int | str, Any] = dict(enumerate(node.args))
        args.update(node.kwargs.items())
        if reads_no_channels(node, name, layout):
            return True
        if name in ELEMENTWISE_CALLS:
            if any((self._layout[y], self.width[y]) != (layout, width) for y in inputs):
                return False  # broadcast over channels
            self._add(node, layout, width, *inputs)
        elif is_flatten(node, name, args):
            self._apply_flatten(node, x)
        elif len(inputs) > 1 or layout == "flat":
            return False
        elif name in SPATIAL_CALLS:
            self._add(node, layout, width, x)
        elif name == "mean" and args.get(1, args.get("dim")) in SPACE_DIMS:
            kept = args.get(2, args.get("keepdim", False))
            self._add(node, layout if kept or layout is None else "flat", width, x)
        else:
            return False
        return True

    def _apply_flatten(self, node: fx.Node, x: fx.Node) -> None:
        """(N, C, H, W) -> (N, C*H*W): whole copies stay whole, and the first C*H*W features are the first C maps."""
        self._add(node, "flat", self.width[x] if self._layout[x] == "flat" else None, x)

    # what follows for the classes

    def _find_readouts(self, graph: fx.Graph) -> Iterator[tuple[str, int]]:
        """For each real linear layer the first of the BatchNorm1d, Identity and Dropout before it, and its features."""
        for node in graph.nodes:
            if not isinstance(layer := self._module_called_once(node), nn.Linear):
                continue
            first = node
            while len(first.all_input_nodes) == 1 and len((before := first.all_input_nodes[0]).users) == 1:
                if not isinstance(self._module_called_once(before), nn.BatchNorm1d | nn.Identity | nn.Dropout):
                    break
                first = before
            yield str(first.target), layer.in_features

    def _module_called_once(self, node: fx.Node) -> nn.Module | None:
        name = str(node.target)
        return self.modules[name] if node.op == "call_module" and self._calls[name] == 1 else None

    def _block_modules_that_forward_reads(self, graph: fx.Graph) -> None:
        """Keep a module plain whose tensors the forward reads itself, as `self.conv.weight`."""
        layers = [(name, end) for name, ends in self.layers.items() for end in ends]
        for read in (str(node.target) for node in graph.nodes if node.op == "get_attr"):
            for name, end in [*layers, *self.widened.items()]:
                if read.startswith(f"{name}."):
                    self._block(end, f"belongs to {name}, whose {read} the forward reads")

    def _reason_to_stay(self, name: str) -> str | None:
        """Why layer `name` keeps its plain form, or None."""
        obstacle = find_obstacle(self.modules[name])
        if obstacle is not None:
            return obstacle
        for side, node in zip(("input", "output"), self.layers[name], strict=True):
            if (reason := self._blocked.get(self._root(node))) is not None:
                return f"its {side} {reason}"
        return None

    def _find_live_classes(self) -> set[fx.Node]:
        """Roots of the classes that are worth carrying.

        Those at the ends of a binary layer that expands, and all that expanding layers connect with them.
        """
        expanding = {name: ends for name, ends in self.layers.items() if self._reason_to_stay(name) is None}
        pairs = [(name, {self._root(x), self._root(y)}) for name, (x, y) in expanding.items()]
        live = {root for name, pair in pairs if isinstance(self.modules[name], BINARY) for root in pair}
        grown = True
        while grown:
            reached = live.union(*(pair for _, pair in pairs if pair & live))
            grown, live = reached != live, reached
        return live


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return Tracer().trace(model)
    except Exception as error:  # the model's own code runs under the tracer and may raise anything
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the forward of {type(model).__name__} cannot be traced by torch.fx ({message}): "
            f"keep its control flow independent of tensor values, or build the network with create_model"
        ) from error


def _describe_place(node: fx.Node) -> str:
    """Which layer comes before the node."""
    while node.op != "call_module" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return f"after layer {node.target}" if node.op == "call_module" else "before any layer"
