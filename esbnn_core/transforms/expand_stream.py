"""expand_ on tokens, design F3: the residual stream of a transformer is carried wide (papers.md#es-transformer).

Tensors (..., C) that must have the same features (the sides of an addition, input and output of a LayerNorm) form a
class. The output of a layer begins a class, and one module that treats each feature alone may begin one, by a tile
after it: the entry. A class is carried at tau*g times its features unless an operation without a rule reads it.
"""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from esbnn_core.layers import BinaryLinear, SliceChannels, Tile
from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_calls import call_origin
from esbnn_core.transforms.expand_rules import ATTENTION
from esbnn_core.transforms.expand_tokens import (
    ELEMENTWISE_CALLS,
    TokenTracer,
    affine,
    is_expandable,
    is_norm,
    tile_blocks,
    treats_features_alone,
    wide_linear,
    wide_norm,
)
from esbnn_core.transforms.undisturbed import undisturbed
from esbnn_core.units.attention import BinaryMultiheadAttention

_DROPS = ("stochastic_depth", "drop_path", "StochasticDepth", "DropPath")
"""What torchvision and timm call stochastic depth, function and module."""

Rows = dict[nn.Module, list[nn.Module]]


@dataclass(frozen=True)
class StreamPlan:
    """What design F3 does with a network.

    Attributes:
        layers: whether input and output are carried, for each binary linear layer of which one is.
        norms: LayerNorms that become wide.
        entry: the module after which the stream is tiled, if any.
        exits: features that go on, for each module after which only the first ones do.
        parameters: owner and key of each parameter that is repeated.
    """

    layers: dict[BinaryLinear, tuple[bool, bool]]
    norms: tuple[nn.LayerNorm, ...]
    entry: nn.Module | None
    exits: dict[nn.Module, int]
    parameters: tuple[tuple[nn.Module, str], ...]


def plan_stream(model: nn.Module) -> StreamPlan | None:
    """The plan with the entry that carries most layers; None where torch.fx cannot trace the forward."""
    modes = {module: module.training for module in model.modules()}
    try:
        with undisturbed(model):
            graph = TokenTracer().trace(model.eval())  # stochastic depth draws numbers in training
    except Exception:  # the model's own code runs under the tracer and may raise anything
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode
    modules = dict(model.named_modules())
    candidates = [n for n in graph.nodes if n.op == "call_module" and _alone(modules[str(n.target)])]
    plans = [_Classes(graph, modules, entry).plan() for entry in [None, *candidates]]
    return max(plans, key=lambda plan: sum(map(sum, plan.layers.values())))


def stream_rows(plan: StreamPlan, expansion: Expansion) -> Rows:
    """What takes the place of each module; nothing is changed.

    Args:
        plan: of plan_stream, whose layers check_layer has passed.
        expansion: tau, groups and copy_spread.
    """
    rows: Rows = {}
    for layer, (reads_wide, writes_wide) in plan.layers.items():
        row: list[nn.Module] = [] if reads_wide else [Tile(expansion.wide, dim=-1)]
        row.append(wide_linear(layer, expansion, expansion.copies if reads_wide else expansion.wide))
        if writes_wide:
            row.append(Tile(expansion.copies, dim=-1))
        else:
            row += tile_blocks(expansion.tau, layer, math.gcd(layer.in_features, layer.out_features))
        rows[layer] = [*row, affine(layer, expansion.wide if writes_wide else 1)]
    for norm in plan.norms:
        rows[norm] = [wide_norm(norm, expansion.wide)]
    if plan.entry is not None:
        rows[plan.entry] = [plan.entry, Tile(expansion.wide, dim=-1)]
    for module, features in plan.exits.items():
        rows[module] = [*rows.get(module, [module]), SliceChannels(features, dim=-1)]
    return rows


def widen_parameters_(plan: StreamPlan, expansion: Expansion) -> None:
    """Repeat the parameters of the stream along their features."""
    for owner, key in plan.parameters:
        old = getattr(owner, key)
        wide = old.detach().repeat(*[1] * (old.dim() - 1), expansion.wide)
        setattr(owner, key, nn.Parameter(wide, requires_grad=old.requires_grad))


def _alone(module: nn.Module) -> bool:
    """Whether it treats each feature alone, or is a LayerNorm over the features, which whole copies do not disturb."""
    return is_norm(module) or type(module).__name__ in _DROPS or treats_features_alone(module)


def _reads_sizes(node: fx.Node) -> bool:
    """Whether the node reads no values, and not the number of features: of (N, tokens, C) or (N, H, W, C)."""
    if node.op not in ("call_function", "call_method"):
        return False
    called = call_origin(node)[1]
    if called == "getattr" and node.args[1] == "shape":
        used = [user for user in node.users if user.users or user.target is not operator.getitem]
        return all(user.target is operator.getitem and bool(user.args[1] in (0, 1)) for user in used)
    known = called == "getattr" and node.args[1] in ("ndim", "dtype", "device")
    return bool(known or called == "dim" or (called == "size" and node.args[1:] in ((0,), (1,))))


class _Classes:
    """The tensors of a traced forward in classes, given the entry."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], entry: fx.Node | None) -> None:
        self.modules, self.entry = modules, entry
        self.called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        self.parent: dict[fx.Node, fx.Node] = {}
        self.blocked: set[fx.Node] = set()  # by root, as begun and width
        self.begun: set[fx.Node] = set()
        self.width: dict[fx.Node, int] = {}
        self.layers: dict[BinaryLinear, tuple[fx.Node, fx.Node]] = {}
        self.norms: dict[nn.LayerNorm, fx.Node] = {}
        self.exits: dict[nn.Module, fx.Node] = {}
        self.parameters: dict[str, fx.Node] = {}
        self.tuples: set[fx.Node] = set()
        # layers of attention, which have nominal tensors between them, and those of them that read its input
        self.apart: set[nn.Module] = set()
        self.readers: set[nn.Module] = set()
        for node in graph.nodes:
            self.visit(node)

    def root(self, node: fx.Node) -> fx.Node:
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def carried(self, node: fx.Node) -> bool:
        root = self.root(node)
        return root in self.begun and root not in self.blocked

    def add(self, node: fx.Node, *same: fx.Node, width: int | None = None, begins: bool = False) -> None:
        """Enter a tensor in the class of the tensors `same`; features that differ block it."""
        self.parent[node] = node
        if begins:
            self.begun.add(node)
        if width is not None:
            self.width[node] = width
        for other in same:
            kept, gone = self.root(node), self.root(other)
            if kept is gone:
                continue
            self.parent[gone] = kept
            if gone in self.blocked or self.width.get(gone, -1) != self.width.setdefault(
                kept, self.width.get(gone, -1)
            ):
                self.blocked.add(kept)
            if gone in self.begun:
                self.begun.add(kept)

    def visit(self, node: fx.Node) -> None:
        inputs = [other for other in node.all_input_nodes if other in self.parent]
        if _reads_sizes(node):
            return
        if node.op == "get_attr":
            self.visit_parameter(node)
        elif node.op == "call_module" and self.visit_module(node, self.modules[str(node.target)], inputs):
            return
        elif self.has_rule(node) and node.op != "call_module" and inputs:
            self.add(node, *inputs)
        else:
            for other in inputs:
                if not (other in self.tuples and call_origin(node)[1] == "getitem"):  # probabilities beside the output
                    self.blocked.add(self.root(other))
            self.add(node)
            self.blocked.add(node)

    def visit_parameter(self, node: fx.Node) -> None:
        target = str(node.target)
        owner, _, key = target.rpartition(".")
        value = getattr(self.modules.get(owner), key, None)
        first = self.parameters.setdefault(target, node)
        if isinstance(value, nn.Parameter) and value.dim() > 0:
            self.add(node, *([] if first is node else [first]), width=value.shape[-1])
        else:
            self.add(node)
            self.blocked.add(node)

    def visit_module(self, node: fx.Node, module: nn.Module, inputs: list[fx.Node]) -> bool:
        if isinstance(module, ATTENTION):
            if {"query", "key", "value"} & node.kwargs.keys():
                return False
            of_tokens = node.args[: 3 if isinstance(module, BinaryMultiheadAttention) else 1]  # query, key and value
            masks = [other for other in inputs if other not in of_tokens]
            self.blocked |= {self.root(other) for other in masks}
            inputs = [other for other in inputs if other in of_tokens]
        if len(inputs) != 1:
            return False
        (x,) = inputs
        if self.called.count(str(node.target)) != 1:  # stochastic depth is, for both parts of a block
            if is_norm(module) or not _alone(module) or node is self.entry:
                return False
            self.add(node, x)
            return True
        if node is self.entry:
            self.add(node, width=self.width.get(self.root(x)), begins=True)
        elif is_expandable(module):
            self.enter_layers(node, x, [module], [module])
        elif isinstance(module, BinaryMultiheadAttention):
            self.enter_layers(node, x, [module.q_proj, module.k_proj, module.v_proj], [module.out_proj])
        elif isinstance(module, ATTENTION):
            held = dict(module.named_children())
            readers = [held[key] for key in ("qkv", "gate") if key in held]
            self.enter_layers(node, x, readers, [held["proj"]])
        elif not _alone(module):
            return False
        elif node.users and not any(self.has_rule(user) for user in node.users):
            self.exits[module] = x
            self.add(node)
            self.blocked.add(node)
        else:
            self.add(node, x)
        if is_norm(module):
            features = module.normalized_shape[0]
            if self.width.setdefault(self.root(x), features) != features:
                self.blocked.add(self.root(x))
            if node is self.entry:
                self.width[node] = features
            else:
                self.norms[module] = x
        return True

    def enter_layers(self, node: fx.Node, x: fx.Node, readers: list[nn.Module], writers: list[nn.Module]) -> None:
        """Enter the output of a layer, or of attention whose `readers` read x and whose last layer makes the output."""
        known = all(is_expandable(layer) for layer in [*readers, *writers])
        self.add(node, width=getattr(writers[0], "out_features", None), begins=known)
        features = getattr(readers[0], "in_features", -1)
        if not known or self.width.setdefault(self.root(x), features) != features:
            self.blocked |= {self.root(x), node}
            return
        if isinstance(self.modules[str(node.target)], BinaryMultiheadAttention):
            self.tuples.add(node)
        for layer in [*readers, *writers]:
            assert isinstance(layer, BinaryLinear)
            self.layers[layer] = (x, node)
        if readers != writers:
            self.apart |= {*readers, *writers}
            self.readers |= {*readers}

    def has_rule(self, node: fx.Node) -> bool:
        """Whether the operation works on whole copies; of tensors of equal features, which `add` checks."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            attention = isinstance(module, ATTENTION)
            return attention or is_expandable(module) or _alone(module)
        if node.op not in ("call_function", "call_method"):
            return False
        called = call_origin(node)[1]
        if node.args and node.args[0] in self.tuples:
            return called == "getitem" and bool(node.args[1] == 0)
        return called in ELEMENTWISE_CALLS or called in _DROPS or _reads_sizes(node)

    def sides(self) -> Iterator[tuple[BinaryLinear, tuple[bool, bool]]]:
        """Layers with a carried side; the layers of attention have one of their own between them, which is nominal."""
        for layer, (x, y) in self.layers.items():
            reads, writes = self.carried(x), self.carried(y)
            if layer in self.apart:
                reads, writes = (reads, False) if layer in self.readers else (False, writes)
            if reads or writes:
                yield layer, (reads, writes)

    def plan(self) -> StreamPlan:
        """The plan for these classes; without layers where the entry begins nothing that is carried."""
        entry = None if self.entry is None else self.modules[str(self.entry.target)]
        if self.entry is not None and not (self.carried(self.entry) and self.root(self.entry) in self.width):
            return StreamPlan({}, (), None, {}, ())
        exits = {m: self.width[self.root(x)] for m, x in self.exits.items() if self.carried(x)}
        named = [(t.rpartition("."), node) for t, node in self.parameters.items() if self.carried(node)]
        return StreamPlan(
            dict(self.sides()),
            tuple(norm for norm, x in self.norms.items() if self.carried(x)),
            entry,
            exits,
            tuple((self.modules[parts[0]], parts[2]) for parts, _ in named),
        )
