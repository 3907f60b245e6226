"""What binarize_ has to know of a network's forward: its real-valued ends, weights read from outside, constant signs.

The forward is traced with torch.fx; convolutions, linear layers and torch's own modules are single nodes. A forward
that cannot be traced gives None: the ends then go by the order of definition, and the first batch shows the rest
(esbnn_core.transforms.first_batch).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

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
    ("max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d dropout dropout2d flatten reshape view permute ")
    + ("transpose movedim mean sum amax contiguous clone detach float half to interpolate getitem chunk split ")
    + ("unsqueeze squeeze expand repeat channel_shuffle pixel_shuffle pixel_unshuffle stochastic_depth sqrt pad")
).split()
_JOINING = ("add", "iadd", "mul", "imul", "cat", "concat", "concatenate", "stack", "maximum", "max", "div", "truediv")
_POSITIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "softmax", "abs", "square", "exp")


@dataclass(frozen=True)
class Look:
    """What the traced forward shows.

    Attributes:
        ends: names of the layers that read an input of the network or make one of its outputs.
        read: names of parameters that a forward other than their own layer's reads, such as "attn.qkv.weight".
        positive: for a layer's name, what makes its input non-negative, such as "act (ReLU)" or "a call of relu".
        called: names of all modules that run.
    """

    ends: frozenset[str]
    read: frozenset[str]
    positive: Callable[[str, Callable[[nn.Module], bool]], str | None]
    called: frozenset[str]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Weighted) or super().is_leaf_module(m, module_qualified_name)


def look_at(model: nn.Module) -> Look | None:
    """Trace the forward of `model`; None where torch.fx cannot follow it."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # the model's own code runs under the tracer: anything may come
        return None
    modules = dict(model.named_modules())
    names = {id(module): name for name, module in reversed(modules.items())}
    layers = {n: names[id(modules[str(n.target)])] for n in graph.nodes if _is_layer(n, modules)}
    before = _ancestors(graph.nodes)
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    outputs = [x for n in graph.nodes if n.op == "output" for x in n.all_input_nodes]
    first = {n for start in inputs for n in _reach([start], layers, lambda n: n.users)}
    last = {n for end in outputs for n in _reach([end], layers, lambda n: n.all_input_nodes)}
    # a skip connection carries the input to late layers and early layers to the output: only the outermost count
    first = {n for n in first if not any(other in before[n] for other in first)}
    last = {n for n in last if not any(n in before[other] for other in last)}
    by_name: dict[str, fx.Node] = {}
    for node, name in layers.items():
        by_name.setdefault(name, node)

    def positive(name: str, replaced: Callable[[nn.Module], bool]) -> str | None:
        node = by_name.get(name)
        return None if node is None else _positive(node.all_input_nodes[0], modules, replaced, {})

    return Look(
        ends=frozenset(layers[n] for n in first | last),
        read=frozenset(str(n.target) for n in graph.nodes if n.op == "get_attr"),
        positive=positive,
        called=frozenset(names[id(modules[str(n.target)])] for n in graph.nodes if n.op == "call_module"),
    )


def _is_layer(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], Weighted)


def _ancestors(nodes: Iterable[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """Every node's transitive inputs; fx lists nodes in the order in which they run."""
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        found[node] = {a for x in node.all_input_nodes for a in (x, *found[x])}
    return found


def _reach(
    start: Iterable[fx.Node], layers: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """Layers that `step` reaches from `start` without passing through another layer."""
    stop, seen, waiting = set(layers), set[fx.Node](), list(start)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            if node not in stop:
                waiting.extend(step(node))
    return seen & stop


def _positive(
    node: object, modules: dict[str, nn.Module], replaced: Callable[[nn.Module], bool], known: dict[fx.Node, str | None]
) -> str | None:
    """What makes the value of `node` non-negative everywhere, or None where it may be negative."""
    if not isinstance(node, fx.Node):
        return "a constant" if isinstance(node, int | float) and node >= 0 else None
    if node in known:
        return known[node]
    known[node] = None
    inputs = [_positive(x, modules, replaced, known) for x in _operands(node)]
    found: str | None = None
    if node.op == "call_module":
        module = modules[str(node.target)]
        if _clips_below_zero(module) and not replaced(module):
            found = f"{node.target} ({type(module).__name__})"
        elif isinstance(module, _PASSING_MODULES):
            found = inputs[0]
    elif node.op in ("call_function", "call_method"):
        called = getattr(node.target, "__name__", str(node.target)).strip("_")
        if called in _POSITIVE or (called in ("clamp", "hardtanh", "clamp_min") and _bound(node) >= 0):
            found = f"a call of {called}"
        elif called in _PASSING:
            found = inputs[0] if inputs else None
        elif called in _JOINING and inputs and all(inputs):
            found = inputs[0]
    known[node] = found
    return found


def _operands(node: fx.Node) -> list[object]:
    """Tensors and numbers that the value is made of: a list's items, without shapes and keyword options."""
    head = node.args[0] if node.args else None
    if isinstance(head, list | tuple):
        return list(head)
    called = getattr(node.target, "__name__", str(node.target)).strip("_")
    return list(node.args[:2]) if called in _JOINING else list(node.args[:1])


def _bound(node: fx.Node) -> float:
    """Lower bound of a clamp, minus infinity where it is not a number in the code."""
    given = node.kwargs.get("min", node.kwargs.get("min_val", node.args[1] if len(node.args) > 1 else None))
    return float(given) if isinstance(given, int | float) else -float("inf")


def _clips_below_zero(module: nn.Module) -> bool:
    """Whether the module's values are never negative."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return module.min_val >= 0
    if isinstance(module, nn.Threshold):
        return module.threshold >= 0 and module.value >= 0
    return isinstance(module, nn.ReLU | nn.Sigmoid | nn.Hardsigmoid | nn.Softplus | nn.Softmax | nn.Softmax2d)
