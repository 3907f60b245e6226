"""The graph of a forward as it runs on an example, where torch.fx cannot trace it.

torch.fx runs a forward on stand-ins for tensors, which have no values: a loop over a list of images or a test of a
value ends the trace. Here the forward runs on real tensors, and what it does with them is written down as nodes of the
same kind, so that what reads a traced graph reads this one. It is the path of that example: modules that only another
input would reach are not in it.
"""

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from esbnn_core.errors import InputError
from esbnn_core.transforms.record_numbers import TracedFloat, TracedInt, plain, traced
from esbnn_core.transforms.undisturbed import undisturbed

Example = tuple[Any, ...]
"""The positional arguments of one forward, as torch.export takes them."""

_FOLLOWERS = (__name__, "esbnn_core.transforms.record_numbers", "esbnn_core.transforms.look")
"""Modules whose code runs around that of a forward."""

_BASIC = (str, int, float, bool, complex, torch.dtype, torch.device, torch.memory_format, torch.layout)


@dataclass(frozen=True)
class Call:
    """A call of a module that a trace or a record enters.

    Attributes:
        name: of the module.
        inputs: the tensors among its arguments.
        single: whether it has one argument, a tensor, and nothing else.
        output: what it returns, None if that is not one value.
        inside: the nodes of its forward.
    """

    name: str
    inputs: tuple[fx.Node, ...]
    single: bool
    output: fx.Node | None
    inside: frozenset[fx.Node]


def first_line(error: Exception) -> str:
    """Of what a forward raises, its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def line_of_code() -> str:
    """File and line of the forward that is followed: the innermost place outside torch and what follows it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        (name := str(frame.f_globals.get("__name__"))).partition(".")[0] == "torch" or name in _FOLLOWERS
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def constant_tensor() -> None:
    """Stands in a graph for a tensor that the forward has from elsewhere."""


class Recorder(TorchFunctionMode):
    """Writes down what a forward does with tensors.

    Attributes:
        graph: the nodes.
        calls: of the modules that were entered.
        busy: whether a leaf runs, of which nothing is written down.

    Args:
        model: whose submodules have names in the graph.
        is_leaf: (module, name) -> whether a module is one node.
    """

    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.graph, self.calls, self.busy = fx.Graph(), list[Call](), False
        self._is_leaf = is_leaf
        self._names = {module: name for name, module in reversed([*model.named_modules()])}
        tensors = [*model.named_buffers(), *model.named_parameters()]
        self._owned = {id(tensor): name for name, tensor in reversed(tensors)}
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Tensor] = []  # no other tensor gets the address of one of these
        self._stack: list[tuple[str, type]] = []

    def run(self, model: nn.Module, example: Example) -> None:
        """Run the forward on the example."""
        for index, tensor in enumerate(_tensors_in(example)):
            self._enter(tensor, self.graph.placeholder(f"input_{index}"))
        call = nn.Module.__call__

        def record(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._call_module(module, args, kwargs) if module in self._names else call(module, *args, **kwargs)

        with mock.patch.object(nn.Module, "__call__", record), self:
            out = model.forward(*example)
        self.graph.output(tuple(self._node(tensor) for tensor in _tensors_in(out)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self._leaf():
            out = func(*_plain(args), **_plain(kwargs))
        return out if self.busy else self._call_function(func, args, kwargs, out)

    def enter_number(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node:
        """The node of a function of numbers."""
        return self._create("call_function", function, operands, {})

    @contextmanager
    def _leaf(self) -> Iterator[None]:
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before

    def _call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The module's forward without its hooks, as one node or entered."""
        name = self._names[module]
        if self.busy:
            return module.forward(*args, **kwargs)
        self._stack.append((name, type(module)))
        try:
            if self._is_leaf(module, name):
                with self._leaf():
                    out = _apart(module.forward(*_plain(args), **_plain(kwargs)), _tensors_in((args, kwargs)))
                self._enter(out, self._create("call_module", name, args, kwargs))
                return out
            before = len(self.graph.nodes)
            nodes = tuple(map(self._node, _tensors_in((args, kwargs))))
            out = module.forward(*args, **kwargs)
        finally:
            self._stack.pop()
        given = [value for value in (*args, *kwargs.values()) if value is not None]
        single = len(given) == 1 and isinstance(given[0], Tensor)
        made = self._nodes.get(id(out)) if isinstance(out, Tensor) else None
        self.calls.append(Call(name, nodes, single, made, frozenset([*self.graph.nodes][before:])))
        return out

    def _call_function(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """What a function or method has returned, with its node if that is a tensor or a size."""
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            name = func.__self__.__name__
            if name == "shape":
                return self._sizes(args[0], out)
            if isinstance(out, Tensor):
                self._enter(out, self._create("call_function", getattr, (args[0], name), {}))
            return out
        if name == "size" and isinstance(out, torch.Size):
            return self._sizes(args[0], out)
        if name in ("size", "numel", "nelement"):
            return self._number(out, self._create("call_method", name, args, kwargs))
        if name == "__iter__":
            out = list(out)
            self._enter(out, self._create("call_method", "unbind", args, {}))
            return iter(out)
        if name == "__setitem__":
            self._enter(args[0], self._create("call_function", operator.setitem, args, {}))
            self._enter_base(args[0])
        elif _tensors_in(out):
            self._enter(out, self._create(*_target(func, name, args), kwargs))
            if args and out is args[0]:
                self._enter_base(out)
        return out

    def _enter_base(self, view: Tensor) -> None:
        """What is written to a view is written to the tensor that it is a view of."""
        base = view._base if view._is_view() else None
        if base is not None and id(base) in self._nodes:
            self._enter(base, self._create("call_function", operator.setitem, (base, None, view), {}))

    def _sizes(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        node = self._create("call_function", getattr, (tensor, "shape"), {})
        items = [self.graph.call_function(operator.getitem, (node, at)) for at in range(len(shape))]
        return torch.Size(self._number(size, item) for size, item in zip(shape, items, strict=True))

    def _number(self, value: int, node: fx.Node) -> Any:
        node.meta["value"] = value
        return traced(value, self, lambda: node)

    def _create(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        node = self.graph.create_node(op, target, self._arguments(tuple(args)), self._arguments(dict(kwargs)))
        node.meta["nn_module_stack"] = {name: (name, kind) for name, kind in self._stack}
        node.meta["line"] = line_of_code()
        return node

    def _arguments(self, value: Any) -> Any:
        """The same with nodes for tensors and for numbers that have one."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, TracedInt | TracedFloat):
            return value.node
        if isinstance(value, tuple | list):
            return (list if isinstance(value, list) else tuple)(self._arguments(item) for item in value)
        if isinstance(value, dict):
            return {str(key): self._arguments(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*map(self._arguments, (value.start, value.stop, value.step)))
        return value if value is None or value is Ellipsis or isinstance(value, _BASIC) else type(value).__name__

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) in self._nodes:
            return self._nodes[id(tensor)]
        if id(tensor) in self._owned:  # one node for each time that it is read, as in a traced graph
            node = self.graph.get_attr(self._owned[id(tensor)])
            node.meta["line"] = line_of_code()
            return node
        return self.graph.call_function(constant_tensor)

    def _enter(self, value: Any, node: fx.Node) -> None:
        """Remember which node makes a tensor, or those of a tuple, list or mapping."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._kept.append(value)
            with self._leaf():
                node.meta |= {"shape": tuple(value.shape), "dtype": value.dtype}
        elif isinstance(value, Mapping | tuple | list):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in items:
                if _tensors_in(item):
                    self._enter(item, self.graph.call_function(operator.getitem, (node, key)))


def _plain(value: Any) -> Any:
    """The same with numbers that remember nothing."""
    if isinstance(value, tuple | list):
        items = [_plain(item) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*map(_plain, (value.start, value.stop, value.step)))
    return plain(value)


def _tensors_in(value: Any, depth: int = 6) -> list[Tensor]:
    """The tensors of a value in order: in lists, tuples, mappings and the attributes of other objects."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or value is None or isinstance(value, (*_BASIC, nn.Module, type)):
        return []
    if isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, tuple | list):
        value = list(getattr(value, "__dict__", {}).values())
    return [tensor for item in value for tensor in _tensors_in(item, depth - 1)]


def _apart(out: Any, given: list[Tensor]) -> Any:
    """What a module returned, as another tensor if it is one that it was given: other readers do not get its output."""
    return torch.ops.aten.alias(out) if isinstance(out, Tensor) and any(out is each for each in given) else out


def _target(func: Any, name: str, args: Any) -> tuple[str, Any, Any]:
    """Kind, target and arguments of a node, as a traced graph has them: operators for the methods of operators."""
    bare = name.strip("_")
    if name.startswith("__") and name.endswith("__"):
        if hasattr(operator, name):
            return "call_function", getattr(operator, name), args
        if bare.startswith("r") and hasattr(operator, f"__{bare[1:]}__"):
            return "call_function", getattr(operator, f"__{bare[1:]}__"), args[::-1]
    if getattr(Tensor, name, None) is func:
        return "call_method", name, args
    return "call_function", func, args


def record(
    model: nn.Module,
    example: Example,
    is_leaf: Callable[[nn.Module, str], bool],
    around: Callable[[Recorder], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Recorder:
    """The recorded forward of a network in evaluation mode, without hooks and gradients; the model stays as it is.

    Args:
        model: any module.
        example: the positional arguments of one forward.
        is_leaf: (module, name) -> whether a module is one node.
        around: what is entered while the forward runs.

    Raises:
        InputError: example is not a tuple with a tensor, or the forward does not run on it.
    """
    if not isinstance(example, tuple) or not _tensors_in(example):
        raise InputError(
            f"example must be a tuple of the positional arguments of one forward with a tensor in it, got "
            f"{type(example).__name__}: give (images,)"
        )
    modes = {module: module.training for module in model.modules()}
    recorder = Recorder(model, is_leaf)
    try:
        model.eval()
        with undisturbed(model), torch.no_grad(), torch.random.fork_rng(devices=[]), around(recorder):
            recorder.run(model, example)
    except InputError:
        raise
    except Exception as error:  # the model's own code may raise anything
        raise InputError(
            f"example must be the arguments that {type(model).__name__} takes, its forward stops with "
            f"{first_line(error)}: give a "
            f"tuple, such as (images,)"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return recorder
