"""Which tensors of a network can be carried expanded: the analysis behind expand_.

The forward is traced with torch.fx. Tensors that must have the same width (the two sides of an addition, the input and
output of a BatchNorm) form a class; a class is carried at tau*g times its nominal width unless something in it knows
the number of channels (torch.cat, view, GroupNorm, the network's own input and output).
"""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.errors import InputError
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    PadShortcut,
    RPReLU,
    Sign,
    SliceChannels,
    SqueezeExcite,
    Tile,
)
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.units.conv import BinaryUnit

Layout = Literal["map", "flat"] | None
"""(N, C, H, W); (N, F), the channels of a map one after the other; anything else, which is never carried."""


@dataclass(frozen=True)
class ESConfig:
    """tau: expansion factor. groups: g of the convolutions. copy_spread: of the RSign shifts, as ESBinaryConv2d."""

    tau: int = 2
    groups: int = 1
    copy_spread: float = 0.0

    @property
    def wide(self) -> int:
        """tau*g, the carried width over the nominal one."""
        return self.tau * self.groups


@dataclass(frozen=True)
class ExpansionPlan:
    """What expand_ does with the layers of a network.

    Attributes:
        expanded: names of the layers that become expand-shrink ones: binary ones, and real convolutions between them.
        left: name -> reason for every binary layer that stays plain, and every real convolution with groups among
            expanded layers (it reads the first C channels and its output is tiled).
    """

    expanded: tuple[str, ...]
    left: Mapping[str, str]


_LAYERS = (BinaryUnit, BinaryLayer, nn.Conv2d, nn.Linear, SqueezeExcite)
_BINARY = (BinaryUnit, BinaryLayer)
_PER_CHANNEL = (_BatchNorm, nn.PReLU, RPReLU, Sign)
_SOFT = (nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid)
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, *_SOFT, nn.Dropout, nn.Dropout2d, nn.Identity)
_SPATIAL = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)
# functions and methods, without the underscores of in-place ones
_ELEMENTWISE_CALLS = (
    "add iadd sub isub mul imul div truediv neg abs clamp relu relu6 leaky_relu elu gelu silu mish "
    + ("softplus sigmoid tanh hardtanh hardswish hardsigmoid dropout dropout2d contiguous clone detach float half to")
)
_SPACE = ((2, 3), (-2, -1), [2, 3], [-2, -1])  # dimensions of a mean
_SPATIAL_CALLS = "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*_LAYERS, _BatchNorm, Sign, RPReLU, Tile, SliceChannels, PadShortcut))
        return known or super().is_leaf_module(m, module_qualified_name)


def per_channel(module: nn.Module) -> int | None:
    """Number of channels that the module has parameters or statistics for; None for one that fits any width."""
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters if module.num_parameters > 1 else None
    if isinstance(module, RPReLU):
        return module.slope.numel()
    return None if not isinstance(module, Sign) or module.shift is None else module.shift.numel()


def _widenable(module: nn.Module) -> bool:
    """Whether the module works channel by channel with what it holds in (C,) tensors, or holds nothing."""
    inner = [parameter for child in module.children() for parameter in child.parameters()]
    one_value = all(parameter.numel() == 1 for parameter in inner)  # of a norm with an activation inside
    return one_value and isinstance(module, (*_ELEMENTWISE, *_PER_CHANNEL))


def ports(module: nn.Module) -> tuple[int, int]:
    """Nominal input and output width of a layer."""
    if isinstance(module, nn.Linear | BinaryLinear):
        return module.in_features, module.out_features
    if isinstance(module, SqueezeExcite):
        return gate_convs(module)[0].in_channels, gate_convs(module)[1].out_channels
    conv = module.conv if isinstance(module, BinaryUnit) else module
    assert isinstance(conv, nn.Conv2d | BinaryConv2d)
    return conv.in_channels, conv.out_channels


def gate_convs(module: SqueezeExcite) -> list[nn.Conv2d]:
    return [step for step in module.se if isinstance(step, nn.Conv2d)]


def shortcut_steps(shortcut: nn.Module | None) -> list[nn.Module]:
    if shortcut is None:
        return []
    return list(shortcut) if type(shortcut) is nn.Sequential else [shortcut]


def _obstacle(module: nn.Module) -> str | None:
    """Why the layer has no expand-shrink form, or None."""
    if type(module) not in (BinaryUnit, BinaryConv2d, BinaryLinear, nn.Conv2d, SqueezeExcite):
        return f"a {type(module).__name__} has no expand-shrink form"
    if isinstance(module, BinaryUnit):
        for step in shortcut_steps(module.shortcut):
            if not _widenable(step) and not isinstance(step, (*_SPATIAL, PadShortcut)):
                if type(step) is not nn.Conv2d:
                    return f"its shortcut holds a {type(step).__name__}, which has no expand-shrink form"
                if step.groups > 1:
                    return f"its shortcut holds a convolution with groups={step.groups}, groups=1 can be expanded"
        for part in (module.norm, module.inner_act, module.act):
            if not _widenable(part):
                return f"it holds a {type(part).__name__}, which cannot be widened"
    elif getattr(module, "groups", 1) > 1:
        return f"it has groups={module.groups}, and only a layer with groups=1 has an expand-shrink form"
    return None


class Flow:
    """Which tensors of the traced forward are carried, and what that makes of every module."""

    def __init__(self, model: nn.Module, config: ESConfig) -> None:
        self.config = config
        self.modules = dict(model.named_modules())
        try:
            graph = _Tracer().trace(model)
        except Exception as error:  # the model's own code runs under the tracer: anything may come
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"the forward of {type(model).__name__} cannot be traced by torch.fx ({message}): "
                f"keep its control flow independent of tensor values, or build the network with create_model"
            ) from error
        self.parent: dict[fx.Node, fx.Node] = {}
        self.blocked: dict[fx.Node, str] = {}  # by root of a class: why it is nominal
        self.layout: dict[fx.Node, Layout] = {}  # of tensors; a node without one is a number or a shape
        self.width: dict[fx.Node, int | None] = {}
        self.layers: dict[str, tuple[fx.Node, fx.Node]] = {}  # by module: its input and output
        self.widened: dict[str, fx.Node] = {}
        self.exits: dict[str, fx.Node] = {}
        self.calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        self.readouts = {start.target: width for start, width in map(self._readout, graph.nodes) if start is not None}
        for node in graph.nodes:
            self._visit(node)
        for read in (str(node.target) for node in graph.nodes if node.op == "get_attr"):
            # a forward that reads `self.conv.weight` needs that module as it is
            for name, ends in [*self.layers.items(), *((name, (node,)) for name, node in self.widened.items())]:
                for end in ends if read.startswith(f"{name}.") else ():
                    self._block(end, f"belongs to {name}, whose {read} the forward reads")
        # a class is worth carrying for a binary layer that expands at one of its ends, and what real ones join to it
        pairs = {name: pair for name, pair in self.layers.items() if self._form(name) is None}
        found = {self._root(end) for name in pairs for end in pairs[name] if isinstance(self.modules[name], _BINARY)}
        self.live: set[fx.Node] = set()
        while found != self.live:
            self.live = found
            rows = [{self._root(x), self._root(y)} for x, y in pairs.values()]
            found = found.union(*(row for row in rows if row & found))

    # classes of tensors -------------------------------------------------------------------------------------------
    def _root(self, node: fx.Node) -> fx.Node:
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def _block(self, node: fx.Node, reason: str) -> None:
        self.blocked.setdefault(self._root(node), reason)

    def _union(self, one: fx.Node, other: fx.Node) -> None:
        kept, gone = self._root(one), self._root(other)
        if kept is not gone:
            self.parent[gone] = kept
            if gone in self.blocked:
                self._block(kept, self.blocked[gone])

    def _new(self, node: fx.Node, layout: Layout, width: int | None, *same: fx.Node) -> None:
        """Enter a tensor, in the class of `same` where given."""
        self.parent[node], self.layout[node], self.width[node] = node, layout, width
        for other in same:
            self._union(other, node)
        if layout is None:
            self._block(node, "has channels in an unknown place (put flatten(1) before linear layers)")

    def carried(self, node: fx.Node) -> bool:
        return self._root(node) in self.live and self._root(node) not in self.blocked

    def _leave(self, node: fx.Node, reason: str) -> None:
        """`node` is read by something that needs its nominal width: cut it behind its module, or block its class."""
        name = str(node.target)
        alone = node.op == "call_module" and self.calls[name] == 1 and len(node.users) == 1
        # the copies of a layer differ from the first norm or slope on: cut before it, C channels hold C/tau maps alone
        before = node
        while before.op == "call_module" and not {str(before.target)} & {*self.layers, *self.widened}:
            before = before.all_input_nodes[0]
        layer = str(before.target)
        bare = layer in self.layers and not isinstance(self.modules[layer], BinaryUnit)
        if alone and not bare and self.layout[node] is not None and self.width[node] is not None:
            self.exits[name] = node
        else:
            self._block(node, reason)

    # the rules ----------------------------------------------------------------------------------------------------
    def _readout(self, node: fx.Node) -> tuple[fx.Node | None, int]:
        """For a real linear layer: the first of the BatchNorm1d, Identity, Dropout right before it, or itself."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Linear) or self.calls[str(node.target)] > 1:
            return None, 0
        width, start = module.in_features, node
        while len(start.all_input_nodes) == 1 and len((before := start.all_input_nodes[0]).users) == 1:
            module = self.modules.get(str(before.target)) if before.op == "call_module" else None
            if not isinstance(module, nn.BatchNorm1d | nn.Identity | nn.Dropout) or self.calls[str(before.target)] > 1:
                break
            start = before
        return start, width

    def _visit(self, node: fx.Node) -> None:
        inputs = [other for other in node.all_input_nodes if other in self.layout]
        if node.op == "placeholder":
            self._new(node, None, None)
            self.blocked[node] = "is the input of the network"
        elif node.op == "get_attr":
            self._new(node, None, None)
            self.blocked[node] = f"meets {node.target}, which the forward reads from the module"
        elif node.op == "output":
            for other in inputs:
                self._leave(other, "is an output of the network")
        elif node.op == "call_module":
            name, single = str(node.target), len(inputs) == 1 and len(node.args) + len(node.kwargs) == 1
            if not single or not self._module(node, name, self.modules[name], inputs[0]):
                self._stop(node, inputs, f"module {name} ({type(self.modules[name]).__name__})")
        elif not self._function(node, inputs):
            said = f".{node.target}()" if node.op == "call_method" else getattr(node.target, "__name__", node.target)
            self._stop(node, inputs, f"{said} (fx node {node.name}, {self._place(node)})")

    def _place(self, node: fx.Node) -> str:
        before = node
        while before.op != "call_module" and before.all_input_nodes:
            before = before.all_input_nodes[0]
        return f"after layer {before.target}" if before.op == "call_module" else "before any layer"

    def _stop(self, node: fx.Node, inputs: list[fx.Node], said: str) -> None:
        reason = f"meets {said}, through which expanded channels cannot pass"
        for other in inputs:  # the first of a row of such operations is the one to name
            before = self.blocked.get(self._root(other), "") if self.layout[other] is None else ""
            reason = before if before.startswith("meets") else reason
        for other in inputs:
            self._leave(other, reason)
        self._new(node, None, None)
        self.blocked[node] = reason

    def _module(self, node: fx.Node, name: str, module: nn.Module, x: fx.Node) -> bool:
        """Apply the rule of a module with one tensor input; False where there is none."""
        layout, width = self.layout[x], self.width[x]
        if isinstance(module, _LAYERS):
            linear = isinstance(module, nn.Linear | BinaryLinear)
            if layout == ("map" if linear else "flat"):
                return False
            self._new(node, layout if linear else "map", ports(module)[1])
            before = self.layers.setdefault(name, (x, node))
            self._union(before[0], x)  # a layer called twice is expanded for both calls or for none
            self._union(before[1], node)
        elif name in self.readouts and layout != "map":
            self._new(node, layout, self.readouts[name])
            self.layers[name] = (x, node)
            self._block(node, "is read by the classifier")
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self._flatten(node, x)
        elif isinstance(module, _SPATIAL) and layout != "flat":
            self._new(node, layout, width, x)
        elif _widenable(module):
            channels = per_channel(module)
            misplaced = layout == "map" and getattr(module, "channel_dim", 1) != 1
            if channels is not None and (width not in (None, channels) or misplaced):
                return False
            self._new(node, layout, width if channels is None else channels, x)
            if channels is not None:
                self._union(self.widened.setdefault(name, node), node)
        else:
            return False
        return True

    def _function(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Apply the rule of a function or method; False where there is none."""
        target = node.target
        owner = "torch" if isinstance(target, str) else getattr(target, "__module__", None) or "torch"
        name = str(target if isinstance(target, str) else getattr(target, "__name__", "")).strip("_")
        if owner.partition(".")[0] not in ("torch", "_operator", "builtins"):
            return False
        if not inputs:  # arithmetic on sizes
            return owner in ("_operator", "builtins") and bool(node.all_input_nodes)
        x = inputs[0]
        args: dict[int | str, Any] = {}
        args.update(enumerate(node.args))
        args.update(node.kwargs.items())
        layout, width = self.layout[x], self.width[x]
        if _reads_no_channels(node, name, layout):
            return True
        if name in _ELEMENTWISE_CALLS.split():
            if any((self.layout[y], self.width[y]) != (layout, width) for y in inputs):
                return False  # broadcast over channels
            self._new(node, layout, width, *inputs)
        elif _flattens(node, name, args):
            self._flatten(node, x)
        elif len(inputs) > 1 or layout == "flat":
            return False
        elif name in _SPATIAL_CALLS.split():
            self._new(node, layout, width, x)
        elif name == "mean" and args.get(1, args.get("dim")) in _SPACE:
            kept = args.get(2, args.get("keepdim", False))
            self._new(node, layout if kept or layout is None else "flat", width, x)
        else:
            return False
        return True

    def _flatten(self, node: fx.Node, x: fx.Node) -> None:
        """(N, C, H, W) -> (N, C*H*W): whole copies stay whole, and the first C*H*W features are the first C maps."""
        self._new(node, "flat", self.width[x] if self.layout[x] == "flat" else None, x)

    # what comes of it ---------------------------------------------------------------------------------------------
    def _form(self, name: str) -> str | None:
        """Why layer `name` keeps its plain form, or None for the expand-shrink form."""
        obstacle = _obstacle(self.modules[name])
        if obstacle is None:
            for side, node in zip(("input", "output"), self.layers[name], strict=True):
                if (reason := self.blocked.get(self._root(node))) is not None:
                    return f"its {side} {reason}"
        return obstacle

    def plan(self) -> ExpansionPlan:
        expanded, left = [], {}
        covered: set[nn.Module] = set()
        for name, ends in self.layers.items():
            module = self.modules[name]
            covered.update(module.modules())
            reason = self._form(name)
            inside = all(self.carried(end) for end in ends)
            if reason is None and inside:
                expanded.append(name)
            elif reason is not None and (isinstance(module, _BINARY) or (inside and isinstance(module, nn.Conv2d))):
                left[name] = reason
        for name, module in self.modules.items():
            if isinstance(module, BinaryLayer) and module not in covered:
                left[name] = "the traced forward does not call it as a module"
        return ExpansionPlan(tuple(expanded), left)


def _reads_no_channels(node: fx.Node, name: str, layout: Layout) -> bool:
    """Whether the node reads sizes of the batch and of space alone."""
    allowed = (0, 2, 3, -1, -2) if layout == "map" else (0,)
    if name == "size" and len(node.args) == 2:
        return node.args[1] in allowed
    if name == "size" or (name == "getattr" and node.args[1] == "shape"):
        parts = [user for user in node.users if user.target is not operator.getitem or user.users]
        return all(user.target is operator.getitem and user.args[1] in allowed for user in parts)
    return name == "dim" or (name == "getattr" and node.args[1] in ("ndim", "dtype", "device"))


def _flattens(node: fx.Node, name: str, args: Mapping[int | str, object]) -> bool:
    """Whether the node is flatten(1) or x.view(x.size(0), -1), with or without brackets, or with x.shape[0]."""
    if name == "flatten":
        return args.get(1, args.get("start_dim")) == 1 and args.get(2, args.get("end_dim", -1)) == -1
    shape = node.args[1:] if len(node.args) == 3 else node.args[-1]
    if name not in ("view", "reshape") or not isinstance(shape, list | tuple) or len(shape) != 2 or shape[1] != -1:
        return False
    batch = shape[0]
    return isinstance(batch, fx.Node) and batch.target in ("size", operator.getitem) and batch.args[1:] == (0,)
