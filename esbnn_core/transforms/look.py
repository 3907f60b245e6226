"""What binarize_ has to know of a network's forward: its real-valued ends, weights read from outside, constant signs.

The forward is traced with torch.fx; convolutions, linear layers and torch's own modules are single nodes. A forward
that cannot be traced gives None: the ends then go by the order of definition, and the first batch shows the rest
(esbnn_core.transforms.first_batch).
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from esbnn_core.errors import InputError
from esbnn_core.transforms.record import Example, line_of_code, record
from esbnn_core.transforms.undisturbed import undisturbed

Weighted = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)
"""Layers of which the first and the last stay real-valued, whatever their kind."""

_PASSING_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Flatten, nn.Identity),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.Upsample),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad2d, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ChannelShuffle, nn.Unflatten, nn.Fold, nn.Unfold),
)
# functions and methods by name, without the underscores of in-place ones
_PASSING = (
    ("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d ")
    + ("adaptive_max_pool2d dropout dropout1d dropout2d dropout3d stochastic_depth flatten unflatten unfold reshape ")
    + ("view permute transpose swapaxes movedim mean sum amax contiguous clone detach float half double bfloat16 to ")
    + ("type type_as interpolate upsample getitem chunk split narrow select index_select roll flip tile repeat ")
    + ("repeat_interleave unsqueeze squeeze expand channel_shuffle pixel_shuffle pixel_unshuffle sqrt pad")
).split()
_JOINING = ("add", "iadd", "mul", "imul", "cat", "concat", "concatenate", "stack", "maximum", "max", "div", "truediv")
_POSITIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "softmax", "abs", "absolute", "square", "exp")
_BOUNDED = ("clamp", "clip", "clamp_min", "hardtanh")
_OF_BOXES = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")

_PRODUCTS = ("conv2d", "linear", "matmul", "mm", "bmm", "einsum", "addmm")


@dataclass(frozen=True)
class Cause:
    """What makes a value non-negative everywhere.

    Attributes:
        what: "act (ReLU)", or "a call of relu in block (Block)".
        line: file and line of a call, "" for a module.
    """

    what: str
    line: str = ""

    def __str__(self) -> str:
        return f"{self.what}, {self.line}" if self.line else self.what


@dataclass(frozen=True)
class Look:
    """What the traced forward shows.

    Attributes:
        ends: names of the layers that read an input of the network or make one of its outputs.
        constant: names of modules whose input does not depend on an input of the network, such as a network of
            coordinates; the layers among them are ends too.
        read: place in the code, by the name of each parameter that a forward other than its own layer's reads, such as
            "attn.qkv.weight".
        multiplied: "conv2d of block.weight in block (Block), net.py:12" for each product with a parameter that is not
            of a layer's own.
        positive: given which modules are replaced, what makes a layer's input non-negative, by the layer's name; layers
            whose input may be negative are not in it.
    """

    ends: frozenset[str]
    constant: frozenset[str]
    read: Mapping[str, str]
    multiplied: tuple[str, ...]
    positive: Callable[[Callable[[nn.Module], bool]], "dict[str, Cause]"]


class _Tracer(fx.Tracer):
    """Enters all modules but layers and torch's own; each node knows its line of the code."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Weighted) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = line_of_code()
        return node


def look_at(model: nn.Module, example: Example | None = None) -> Look | None:
    """Trace the forward of `model`, or record it on the example; None where torch.fx cannot follow it.

    Raises:
        InputError: the forward does not run on the example.
    """
    tracer = _Tracer()
    try:
        if example is None:
            with undisturbed(model):
                graph = tracer.trace(model)
        else:
            graph = record(model, example, tracer.is_leaf_module).graph
    except InputError:
        raise
    except Exception:  # the model's own code runs under the tracer: anything may come
        return None
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in reversed(modules.items())}
    layers = {n: names[id(modules[str(n.target)])] for n in graph.nodes if _is_layer(n, modules)}
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    # what the gradient does not pass on, such as the boxes of a detector's proposals, is an output of its own
    ends_here = [n for n in graph.nodes if n.op == "output" or _called(n) in ("detach", *_OF_BOXES)]
    outputs = [x for n in ends_here for x in n.all_input_nodes if n.op == "output" or x not in _makers(n)]
    first = _reach(inputs, layers, _readers) & layers.keys()
    last = _reach(outputs, layers, _makers) & layers.keys()
    # a skip connection carries the input to late layers and early layers to the output: only the outermost count
    first -= {n for other in first for n in _reach(_readers(other), (), _readers)}
    last -= {n for other in last for n in _reach(_real_makers(other), (), _real_makers)}
    by_name: dict[str, fx.Node] = {}
    for node, name in layers.items():
        by_name.setdefault(name, node)

    def positive(replaced: Callable[[nn.Module], bool]) -> dict[str, Cause]:
        sources: dict[fx.Node, Cause | None] = {}
        for node in graph.nodes:  # in the order in which they run, so that the inputs are known
            sources[node] = _positive(node, modules, replaced, sources)
        found = {name: sources[node.all_input_nodes[0]] for name, node in by_name.items()}
        return {name: source for name, source in found.items() if source is not None}

    ends = {_outermost(layers[n], modules, 0) for n in first} | {_outermost(layers[n], modules, -1) for n in last}
    alive = _reach(inputs, (), lambda n: n.users)
    idle = [n for n in graph.nodes if n.op == "call_module" and n not in alive]
    constant = {names[id(modules[str(n.target)])] for n in idle}
    return Look(
        ends=frozenset(ends | (constant & set(layers.values()))),
        constant=frozenset(constant),
        read={str(n.target): n.meta["line"] for n in reversed(graph.nodes) if n.op == "get_attr"},
        multiplied=tuple(_products(graph, modules)),
        positive=positive,
    )


def _makers(node: fx.Node) -> list[fx.Node]:
    """What the value is made of, as far as a gradient goes: not shapes, and of boxes in a map the map alone."""
    called = _called(node) if node.op in ("call_function", "call_method") else ""
    if called in ("detach", "size", "numel", "dim") or (called == "getattr" and node.args[1] != "data"):
        return []
    found = list(node.all_input_nodes)
    return [node.args[0]] if called in _OF_BOXES and isinstance(node.args[0], fx.Node) else found


def _real_makers(node: fx.Node) -> list[fx.Node]:
    """The same without whole numbers, such as labels, as far as their type is known."""
    makers = _makers(node)
    return [n for n in makers if (dtype := n.meta.get("dtype")) is None or dtype.is_floating_point]


def _readers(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if node in _makers(user)]


def _is_layer(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the node calls a layer, or a module of torch that holds some (nn.TransformerEncoder)."""
    return node.op == "call_module" and any(isinstance(m, Weighted) for m in modules[str(node.target)].modules())


def _outermost(name: str, modules: dict[str, nn.Module], index: int) -> str:
    """The layer `name`, or the first (0) or last (-1) of a module that holds some."""
    if isinstance(modules[name], Weighted):
        return name
    inside = attention_parts(modules[name])
    held = ((key, m) for key, m in modules[name].named_modules() if isinstance(m, Weighted) and m not in inside)
    return f"{name}.{list(held)[index][0]}"


def attention_parts(model: nn.Module) -> set[nn.Module]:
    """The layers inside of each nn.MultiheadAttention, which is a layer as a whole."""
    return {part for m in model.modules() if isinstance(m, nn.MultiheadAttention) for part in m.children()}


def _products(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Products with a parameter that a forward reads itself, where its owner is not a layer that has one."""
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or _called(node) not in _PRODUCTS:
            continue
        for operand in node.all_input_nodes:
            owner = modules.get(str(operand.target).rpartition(".")[0])
            if operand.op == "get_attr" and owner is not None and not isinstance(owner, Weighted):
                yield f"{_called(node)} of {operand.target}{_place(node)}, {node.meta['line']}"


def _reach(
    start: Iterable[fx.Node], stop: Container[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """`start` and all nodes that `step` reaches from it without passing through a node of `stop`."""
    seen, waiting = set[fx.Node](), list(start)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            if node not in stop:
                waiting.extend(step(node))
    return seen


def _positive(
    node: fx.Node,
    modules: dict[str, nn.Module],
    replaced: Callable[[nn.Module], bool],
    sources: Mapping[fx.Node, Cause | None],
) -> Cause | None:
    """What makes the value of `node` non-negative everywhere, given its inputs' sources; None if it may be negative."""

    def source(operand: object) -> Cause | None:
        if isinstance(operand, fx.Node):
            return sources[operand]
        return Cause("a constant") if isinstance(operand, int | float) and operand >= 0 else None

    inputs = [source(operand) for operand in _operands(node)]
    if node.op == "call_module":
        module = modules[str(node.target)]
        if _clips_below_zero(module) and not replaced(module):
            return Cause(f"{node.target} ({type(module).__name__})")
        return inputs[0] if isinstance(module, _PASSING_MODULES) else None
    if node.op not in ("call_function", "call_method"):
        return None
    called = _called(node)
    if called in _POSITIVE or (called in _BOUNDED and _bound(node) >= 0) or _squares(node) or _cuts_at_zero(node):
        return Cause(f"a call of {called}{_place(node)}", node.meta["line"])
    passes = called in _PASSING or (called in _JOINING and all(inputs))
    return inputs[0] if passes and inputs else None


def _place(node: fx.Node) -> str:
    """Of a call: in which module's forward it is, where that is not the network's own."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(stack.values()), ("", ""))
    return f" in {path} ({kind.__name__})" if path and isinstance(kind, type) else ""


def _called(node: fx.Node) -> str:
    """Name of the function or method, without the underscores of in-place ones."""
    return getattr(node.target, "__name__", str(node.target)).strip("_")


def _operands(node: fx.Node) -> list[object]:
    """Tensors and numbers that the value is made of: a list's items, without shapes and keyword options."""
    head = node.args[0] if node.args else None
    if isinstance(head, list | tuple):
        return list(head)
    return list(node.args[:2]) if _called(node) in _JOINING else list(node.args[:1])


def _bound(node: fx.Node) -> float:
    """Lower bound of a clamp, minus infinity where it is not a number in the code."""
    given = node.kwargs.get("min", node.kwargs.get("min_val", node.args[1] if len(node.args) > 1 else None))
    return float(given) if isinstance(given, int | float) else -float("inf")


def _squares(node: fx.Node) -> bool:
    """Whether the call is x * x, or x to an even power."""
    called, operands = _called(node), node.args[:2]
    if called in ("mul", "imul"):
        return len(operands) == 2 and operands[0] is operands[1]
    power = operands[1] if len(operands) > 1 else node.kwargs.get("exponent")
    return called == "pow" and isinstance(power, int) and power % 2 == 0


def _cuts_at_zero(node: fx.Node) -> bool:
    """Whether the call is a threshold of at least 0 with a value of at least 0 below it."""
    given = [*node.args[1:3], *(node.kwargs[key] for key in ("threshold", "value") if key in node.kwargs)]
    return _called(node) == "threshold" and all(isinstance(each, int | float) and each >= 0 for each in given)


def _clips_below_zero(module: nn.Module) -> bool:
    """Whether the module's values are never negative."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val >= 0
    if isinstance(module, nn.Threshold):
        return module.threshold >= 0 and module.value >= 0
    return isinstance(module, nn.ReLU | nn.Sigmoid | nn.Hardsigmoid | nn.Softplus | nn.Softmax | nn.Softmax2d)
