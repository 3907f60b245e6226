"""expand_: turn the binary layers of a network into expand-shrink ones, in place, where its graph allows it (spec 1.9).

The forward is traced with torch.fx. Tensors that must have the same width (the two sides of an addition, the input and
output of a BatchNorm) form a class; a class is carried at tau*g times its nominal width unless something in it knows
the number of channels (torch.cat, view, GroupNorm, the network's own input and output). Layers stand between classes:

    carried -> carried   expand-shrink layer, binary or real: tau*g*C -> O/tau, tile tau^2*g
    nominal -> carried   the layer as it is, then Tile(tau*g): the stem, before its BatchNorm
    carried -> nominal   SliceChannels(C), then the layer as it is: the classifier

What is read of a class by an operation that cannot take it carried is cut to the first C channels behind the module
that made it, where one module made it for that operation alone. The code of the model's forward is never changed.
"""

import copy
import logging
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.channels import check_factors, es_widths, thermometer_shift
from esbnn_core.errors import InputError
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryLinear,
    RPReLU,
    RSign,
    Sign,
    SliceChannels,
    SqueezeExcite,
    Tile,
)
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.models.registry import ModelSpec, create_model, model_spec
from esbnn_core.models.resnet import PadShortcut
from esbnn_core.unit import BinaryUnit

logger = logging.getLogger("esbnn")

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
_SPATIAL_CALLS = "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*_LAYERS, _BatchNorm, Sign, RPReLU, Tile, SliceChannels, PadShortcut))
        return known or super().is_leaf_module(m, module_qualified_name)


def _per_channel(module: nn.Module) -> int | None:
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


def _ports(module: nn.Module) -> tuple[int, int]:
    """Nominal input and output width of a layer."""
    if isinstance(module, nn.Linear | BinaryLinear):
        return module.in_features, module.out_features
    if isinstance(module, SqueezeExcite):
        return _convs(module)[0].in_channels, _convs(module)[1].out_channels
    conv = module.conv if isinstance(module, BinaryUnit) else module
    assert isinstance(conv, nn.Conv2d | BinaryConv2d)
    return conv.in_channels, conv.out_channels


def _convs(module: SqueezeExcite) -> list[nn.Conv2d]:
    return [step for step in module.se if isinstance(step, nn.Conv2d)]


def _steps(shortcut: nn.Module | None) -> list[nn.Module]:
    if shortcut is None:
        return []
    return list(shortcut) if type(shortcut) is nn.Sequential else [shortcut]


def _obstacle(module: nn.Module) -> str | None:
    """Why the layer has no expand-shrink form, or None."""
    if type(module) not in (BinaryUnit, BinaryConv2d, BinaryLinear, nn.Conv2d, SqueezeExcite):
        return f"a {type(module).__name__} has no expand-shrink form"
    if isinstance(module, BinaryUnit):
        for step in _steps(module.shortcut):
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


class _Flow:
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
        # the copies of a bare layer are still the same maps, so that a cut behind it would keep tau times C/tau of them
        bare = name in self.layers and not isinstance(self.modules[name], BinaryUnit)
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
            self._new(node, layout if linear else "map", _ports(module)[1])
            before = self.layers.setdefault(name, (x, node))
            self._union(before[0], x)  # a layer called twice is expanded for both calls or for none
            self._union(before[1], node)
        elif name in self.readouts:
            self._new(node, layout, self.readouts[name])
            self.layers[name] = (x, node)
            self._block(node, "is read by the classifier")
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self._flatten(node, x)
        elif isinstance(module, _SPATIAL) and layout != "flat":
            self._new(node, layout, width, x)
        elif _widenable(module):
            channels = _per_channel(module)
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
        elif name == "mean" and args.get(1, args.get("dim")) in (
            [2, 3],
            [-2, -1],
            [-1, -2],
            (2, 3),
            (-2, -1),
            (-1, -2),
        ):
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
                _check_widths(name, module, self.config)
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


def _check_widths(name: str, module: nn.Module, config: ESConfig) -> None:
    """Raise InputError for a layer whose widths tau*groups does not divide, or that has no shift to spread."""
    if isinstance(module, BinaryUnit):
        _check_widths(name, module.conv, config)
    inner = _steps(module.shortcut) if isinstance(module, BinaryUnit) else []
    inner = list(_convs(module)) if isinstance(module, SqueezeExcite) else inner
    for step in inner:
        if isinstance(step, nn.Conv2d):
            _check_widths(name, step, config)
    es_widths(*_ports(module), config.tau, config.groups, layer=name)
    sign = getattr(module, "sign", None)
    if config.copy_spread and isinstance(sign, Sign) and sign.shift is None:
        raise InputError(
            f"copy_spread={config.copy_spread} was given and layer {name} has a bare sign with no shift to spread: "
            f"leave it at 0 or give the layer an RSign (BinaryConfig(shift=True))"
        )


def _widened(name: str, module: nn.Module, config: ESConfig) -> nn.Module:
    """A copy whose (C,) parameters and statistics are repeated tau*g times; an RSign gets the spread on top."""
    if _per_channel(module) is None:
        return module
    new = copy.deepcopy(module)
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.dim() == 1:
            wide = nn.Parameter(parameter.detach().repeat(config.wide), requires_grad=parameter.requires_grad)
            setattr(new, key, wide)
    for key, buffer in module.named_buffers(recurse=False):
        if buffer.dim() == 1:
            setattr(new, key, buffer.repeat(config.wide))
    for key in ("num_features", "num_parameters"):
        if hasattr(new, key):
            setattr(new, key, getattr(module, key) * config.wide)
    if isinstance(new, RSign) and config.copy_spread:
        assert new.shift is not None
        copies = config.tau * config.wide
        if new.shift.numel() % copies:
            raise InputError(
                f"copy_spread={config.copy_spread} was given and sign {name} has {new.shift.numel() // config.wide} "
                f"channels, which tau={config.tau} does not divide: leave it at 0 or choose another tau"
            )
        with torch.no_grad():
            new.shift.add_(thermometer_shift(new.shift.numel(), copies, config.copy_spread).to(new.shift))
    return new


def _like(new: nn.Module, old: nn.Module) -> nn.Module:
    """Device, dtype, mode and frozen parameters of the old layer."""
    old_parameters = dict(old.named_parameters())
    like = next(iter(old_parameters.values()))
    new.to(device=like.device, dtype=like.dtype).train(old.training)
    for key, parameter in new.named_parameters():
        if key in old_parameters:
            parameter.requires_grad_(old_parameters[key].requires_grad)
    return new


def _expanded(name: str, module: nn.Module, config: ESConfig, inside_unit: bool = False) -> list[nn.Module]:
    """The expand-shrink form of a layer, with fresh weights: one module, or a real convolution and its Tile.

    The convolution of a unit comes without its tile, which the unit has itself.
    """
    tau, g = config.tau, config.groups
    if isinstance(module, SqueezeExcite):
        channels, hidden = _convs(module)[0].in_channels, _convs(module)[0].out_channels
        return [_like(SqueezeExcite(channels, channels // hidden, tau, g, name), module)]
    w = es_widths(*_ports(module), tau, g, layer=name)
    options: dict[str, Any] = {"groups": g}
    if isinstance(module, nn.Conv2d):
        options |= {key: getattr(module, key) for key in ("stride", "padding", "dilation", "padding_mode")}
        kernel: Any = module.kernel_size
        real = nn.Conv2d(w.carried_in, w.filters, kernel, bias=module.bias is not None, **options)
        return [_like(real, module), Tile(w.copies)]
    assert isinstance(module, BinaryConv2d | BinaryLinear)
    sign = _widened(f"{name}.sign", module.sign, config)
    options |= {
        "weight_quantizer": copy.deepcopy(module.quantizer),
        "activation": sign if isinstance(sign, Sign) else None,
        "learned_scale": module.learned_scale is not None,
        "latent_init": module.latent_init,
    }
    new: BinaryConv2d | BinaryLinear
    if isinstance(module, BinaryLinear):
        new = ESBinaryLinear(module.in_features, module.out_features, tau=tau, **options)
    else:
        options |= {key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "pad_value", "dilation")}
        if inside_unit:
            new = BinaryConv2d(w.carried_in, w.filters, **options)
        else:
            new = ESBinaryConv2d(module.in_channels, module.out_channels, tau=tau, **options)
    if module.bias is not None:  # one for each filter, tiled with it
        new.bias = nn.Parameter(torch.empty(w.filters))
        new.reset_parameters()
    return [_like(new, module)]


def _unit_parts(name: str, unit: BinaryUnit, config: ESConfig) -> dict[str, nn.Module]:
    """The children that turn a plain unit into an expanded one."""
    (conv,) = _expanded(name, unit.conv, config, inside_unit=True)
    parts = {"conv": conv, "tile": Tile(config.tau * config.wide)}
    parts |= {key: _widened(name, getattr(unit, key), config) for key in ("norm", "inner_act", "act")}
    row: list[nn.Module] = []
    for index, step in enumerate(_steps(unit.shortcut)):
        if isinstance(step, PadShortcut):
            row.append(PadShortcut(config.wide))
        elif isinstance(step, nn.Conv2d):
            row += _expanded(f"{name}.shortcut.{index}", step, config)
        else:
            row.append(_widened(name, step, config))
    if row:
        parts["shortcut"] = nn.Sequential(*row) if isinstance(unit.shortcut, nn.Sequential) else row[0]
    return parts


def _rows(flow: _Flow, plan: ExpansionPlan) -> dict[str, list[nn.Module]]:
    """name -> what stands in for the module, in a row; a unit stays and changes inside (_unit_parts)."""
    config, rows = flow.config, dict[str, list[nn.Module]]()
    for name, (x, y) in flow.layers.items():
        module = flow.modules[name]
        if name in plan.expanded:
            rows[name] = [module] if isinstance(module, BinaryUnit) else _expanded(name, module, config)
            continue
        row = rows.setdefault(name, [])
        if flow.carried(x):
            row.append(SliceChannels(flow.readouts.get(name) or _ports(module)[0]))
        if not row or not isinstance(module, nn.Identity):
            row.append(module)
        if flow.carried(y):
            row.append(Tile(config.wide))
    for name, node in flow.widened.items():
        if flow.carried(node):
            rows[name] = [_widened(name, flow.modules[name], config)]
    for name, node in flow.exits.items():
        channels = flow.width[node]
        if flow.carried(node) and channels is not None:
            rows[name] = [*rows.get(name, [flow.modules[name]]), SliceChannels(channels)]
    return {name: row for name, row in rows.items() if row != [flow.modules[name]]}


def _plan(model: nn.Module, config: ESConfig) -> tuple[_Flow, ExpansionPlan]:
    for name, module in model.named_modules():
        if isinstance(module, Tile | ESBinaryConv2d | ESBinaryLinear):
            raise InputError(
                f"{name} is a {type(module).__name__}, so that {type(model).__name__} is expanded already: "
                f"expand_ takes a plain network, build it anew and expand it once"
            )
    flow = _Flow(model, config)
    return flow, flow.plan()


def plan_expansion(model: nn.Module, config: ESConfig | None = None) -> ExpansionPlan:
    """What expand_ would do; the model is not touched. With tau = groups = 1 the plan is empty.

    Raises:
        InputError: as expand_, but not for a plan that expands nothing.
    """
    config = config or ESConfig()
    check_factors(config.tau, config.groups)
    return ExpansionPlan((), {}) if config.wide == 1 else _plan(model, config)[1]


def expand_(model: nn.Module, config: ESConfig | None = None) -> nn.Module:
    """Turn the binary layers of a network into expand-shrink ones, in place, where its graph allows it.

    Multiply-accumulates and weights of every convolution stay as they were (spec 1.3). Layers that change shape get
    fresh weights (reset_parameters); per-channel parameters and running statistics are repeated; everything else
    keeps its values, and all keep device, dtype and mode. An optimizer made before holds the old parameters.

    Binary layers that stay plain are logged by name with the reason (logger "esbnn", WARNING); plan_expansion gives
    the same list. What is wrapped becomes an nn.Sequential under its old name (`conv1` -> `conv1.0`, the classifier
    `fc` -> `fc.1`); in a Sequential with named entries the tile is an entry of its own, and an nn.Identity in front of
    the classifier becomes the SliceChannels, so that a network of create_model has the keys of its es_ version.

    Args:
        model: (N, C, H, W) network whose forward torch.fx can trace, in the mode (train or eval) that it is in.
        config: ESConfig(). tau = groups = 1 leaves the model untouched.

    Returns:
        the same model. Its model_spec is that of the es_ network if it has just become that one, else it is removed.

    Raises:
        InputError: the forward cannot be traced; no binary layer can be expanded (each is named with what stands in
            the way); a width that tau*groups does not divide; a copy_spread without a shift; an expanded model. The
            model is then as it was.
    """
    config = config or ESConfig()
    check_factors(config.tau, config.groups)
    if config.wide == 1:
        return model
    flow, plan = _plan(model, config)
    if not plan.expanded:
        named = "; ".join(f"{name}: {reason}" for name, reason in plan.left.items())
        raise InputError(
            f"expand_ can expand no layer of {type(model).__name__} ({named or 'it has no binary layer'}): join binary "
            f"layers by channel-wise operations (add, pooling, flatten(1)), or place ESBinaryConv2d and Tile by hand"
        )
    # all are built before the first is swapped: an error leaves the model whole
    rows = {flow.modules[name]: row for name, row in _rows(flow, plan).items()}
    units = {name: unit for name in plan.expanded if isinstance(unit := flow.modules[name], BinaryUnit)}
    parts = {unit: _unit_parts(name, unit, config) for name, unit in units.items()}
    spec = _spec_of_twin(model, config)
    for name, reason in plan.left.items():
        logger.warning("expand_ leaves %s plain: %s", name, reason)
    # with the second names that named_modules() skips
    places = [(parent, key, child) for parent in model.modules() for key, child in parent._modules.items()]
    for parent, key, child in places:
        if child is not None and child in rows:
            _put(parent, key, rows[child], child.training)
    for unit, children in parts.items():
        unit.tau, unit.groups = config.tau, config.groups
        for key, part in children.items():
            setattr(unit, key, part.train(unit.training) if isinstance(part, Tile) else part)
    if model_spec(model) is not None:
        if spec is not None and _architecture(spec[1]) == _architecture(model):
            model.model_spec = spec[0]  # type: ignore[assignment]
        else:
            del model.model_spec
    return model


def _put(parent: nn.Module, key: str, row: list[nn.Module], training: bool) -> None:
    """Put a row of modules in the place of one."""
    for step in row:
        if isinstance(step, Tile | SliceChannels):
            step.training = training
    tiled = len(row) == 2 and isinstance(row[1], Tile)
    if tiled and type(parent) is nn.Sequential and not key.isdigit() and "tile" not in parent._modules:
        entries = list(parent._modules.items())
        parent._modules.clear()
        for old, entry in entries:
            parent._modules[old] = row[0] if old == key else entry
            if old == key:
                parent._modules["tile"] = row[1]
    elif len(row) == 1:
        setattr(parent, key, row[0])
    else:
        wrapped = nn.Sequential(*row)
        wrapped.training = training
        setattr(parent, key, wrapped)


def _architecture(model: nn.Module) -> tuple[str, dict[str, torch.Size]]:
    return repr(model), {key: value.shape for key, value in model.state_dict().items()}


def _spec_of_twin(model: nn.Module, config: ESConfig) -> tuple[ModelSpec, nn.Module] | None:
    """ModelSpec and an empty network of the es_ version of a network built by create_model, where there is one."""
    spec = model_spec(model)
    if spec is None:
        return None
    factors = {"tau": config.tau, "groups": config.groups, "copy_spread": config.copy_spread}
    try:
        with torch.device("meta"):
            twin = create_model(f"es_{spec.name.removeprefix('es_')}", **{**spec.options, **factors})
    except InputError:
        return None  # no es_ version, or one without these options
    found = model_spec(twin)
    assert found is not None
    return ModelSpec(found.name, found.options, spec.input_size), twin
