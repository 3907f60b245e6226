"""The traced forward that expand_ reads, with the calls of the modules that the trace enters."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.errors import InputError
from esbnn_core.layers import PadShortcut, RPReLU, Sign, SliceChannels, Tile
from esbnn_core.transforms.expand_attributes import numbers_that_remember
from esbnn_core.transforms.expand_rules import ATTENTION, LAYERS, comes_from_library
from esbnn_core.transforms.record import Call, Example, first_line, record
from esbnn_core.transforms.record_numbers import TracedFloat, TracedInt
from esbnn_core.transforms.undisturbed import undisturbed


class Tracer(fx.Tracer):
    """torch.fx's tracer, which enters none of the modules that expand_ has a rule for.

    A module whose own forward cannot be traced, but which is not the whole network, becomes one node without a rule.

    Attributes:
        calls: of the modules that were entered.
        untraced: name -> why the module is one node.
        busy: as Writer (record_numbers).
    """

    busy = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.untraced: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node."""
        known = isinstance(m, (*LAYERS, *ATTENTION, _BatchNorm, Sign, RPReLU, Tile, SliceChannels, PadShortcut))
        return known or comes_from_library(m) or super().is_leaf_module(m, module_qualified_name)

    def enter_number(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node:
        """The node of a function of numbers."""
        given = tuple(each if isinstance(each, fx.Node) else self.create_arg(each) for each in operands)
        return self.create_node("call_function", function, given, {})

    def create_arg(self, a: Any) -> Any:
        """The argument of a node; a number with a node is that node."""
        return a.node if isinstance(a, TracedInt | TracedFloat) else super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Trace the call of a submodule, and remember it."""
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        before, calls, stack = len(self.graph.nodes), len(self.calls), self.module_stack.copy()
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception as error:  # the model's own code runs under the tracer and may raise anything
            for node in list(reversed(self.graph.nodes))[: len(self.graph.nodes) - before]:
                self.graph.erase_node(node)
            del self.calls[calls:]
            self.module_stack = stack  # torch.fx leaves the modules that it was in
            self.untraced[name] = first_line(error)
            return self.create_proxy("call_module", name, args, kwargs)
        inside = list(self.graph.nodes)[before:]
        given = [value for value in (*args, *kwargs.values()) if value is not None]
        nodes = tuple(value.node for value in given if isinstance(value, fx.Proxy))
        made = output.node if isinstance(output, fx.Proxy) else None
        self.calls.append(Call(name, nodes, len(given) == len(nodes) == 1, made, frozenset(inside)))
        return output


class Forward:
    """A traced forward with its modules.

    Attributes:
        model: the network.
        modules: by name.
        graph: of the forward.
        tracer: with the calls of the modules that were entered.
        leaves: how often each module that is one node is called.
        reads: how often the forward reads each parameter or buffer.
        readouts: input features of each real classifier, by the name of its first module.

    Args:
        model: the network.
        graph: of its forward.
        tracer: that made the graph.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, tracer: Tracer) -> None:
        self.model, self.graph, self.tracer = model, graph, tracer
        self.modules = dict(model.named_modules())
        self.leaves = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self.reads = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr")
        self.readouts = dict(self._find_readouts())

    def _find_readouts(self) -> Iterator[tuple[str, int]]:
        """For each real linear layer the first of the BatchNorm1d, Identity and Dropout before it, and its features."""
        for node in self.graph.nodes:
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
        return self.modules[name] if node.op == "call_module" and self.leaves[name] == 1 else None


def trace(model: nn.Module, example: Example | None = None) -> Forward:
    """The forward of a network: recorded on the example if there is one, else traced.

    Raises:
        InputError: torch.fx cannot trace it; it does not run on the example.
    """
    tracer = Tracer()

    def enters(module: nn.Module, name: str) -> bool:
        return not tracer.is_leaf_module(module, name)

    if example is not None:
        around = functools.partial(numbers_that_remember, model, enters)
        recorder = record(model, example, tracer.is_leaf_module, around)
        tracer.calls = recorder.calls
        return Forward(model, recorder.graph, tracer)
    try:
        with numbers_that_remember(model, enters, tracer), undisturbed(model):
            graph = tracer.trace(model)
        return Forward(model, graph, tracer)
    except Exception as error:  # as in call_module
        inner = next(iter(tracer.untraced), None)
        place = f" or that of its module {inner}" if inner else ""
        raise InputError(
            f"the forward of {type(model).__name__}{place} cannot be traced by torch.fx ({first_line(error)}): "
            f"give an input that it can run on, such as expand_(model, config, example=(images,))"
        ) from error


def describe_place(node: fx.Node) -> str:
    """Which layer comes before the node."""
    while node.op != "call_module" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return f"after layer {node.target}" if node.op == "call_module" else "before any layer"
