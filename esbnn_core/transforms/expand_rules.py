"""The modules and calls that expand_ has rules for, and what a layer needs to have an expand-shrink form."""

import operator
from collections.abc import Mapping
from typing import Literal

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
"""Of a tensor: (N, C, H, W); (N, F), the channels of a map one after the other; or unknown, which is never carried."""

BINARY = (BinaryUnit, BinaryLayer)
LAYERS = (*BINARY, nn.Conv2d, nn.Linear, SqueezeExcite)
"""Modules with an input and an output width of their own."""

SPATIAL = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)
_SMOOTH = (nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid)
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, *_SMOOTH, nn.Dropout, nn.Dropout2d, nn.Identity)
_PER_CHANNEL = (_BatchNorm, nn.PReLU, RPReLU, Sign)

# names of functions and methods, without the underscores of in-place ones
_ELEMENTWISE_NAMES = (
    "add iadd sub isub mul imul div truediv neg abs clamp relu relu6 leaky_relu elu gelu silu mish softplus sigmoid "
    + ("tanh hardtanh hardswish hardsigmoid dropout dropout2d contiguous clone detach float half to")
)
ELEMENTWISE_CALLS = frozenset(_ELEMENTWISE_NAMES.split())
SPATIAL_CALLS = frozenset(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"))
SPACE_DIMS = ((2, 3), (-2, -1), [2, 3], [-2, -1])
"""What the `dim` of a mean over a whole map may be."""

_EXPANDABLE = (BinaryUnit, BinaryConv2d, BinaryLinear, nn.Conv2d, SqueezeExcite)
"""Types with an expand-shrink form; a subclass may compute anything and has none."""


class Tracer(fx.Tracer):
    """torch.fx's tracer, which enters none of the modules that expand_ has a rule for."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*LAYERS, _BatchNorm, Sign, RPReLU, Tile, SliceChannels, PadShortcut))
        return known or super().is_leaf_module(m, module_qualified_name)


def channels_held(module: nn.Module) -> int | None:
    """Number of channels that the module has parameters or statistics for; None if it fits any width."""
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters if module.num_parameters > 1 else None
    if isinstance(module, RPReLU):
        return module.slope.numel()
    return None if not isinstance(module, Sign) or module.shift is None else module.shift.numel()


def can_be_widened(module: nn.Module) -> bool:
    """Whether the module treats each channel alone, with tensors (C,) or without any."""
    inner = [parameter for child in module.children() for parameter in child.parameters()]
    one_value = all(parameter.numel() == 1 for parameter in inner)  # of an activation inside a norm
    return one_value and isinstance(module, (*_ELEMENTWISE, *_PER_CHANNEL))


def nominal_widths(layer: nn.Module) -> tuple[int, int]:
    """Nominal input and output width of a layer."""
    if isinstance(layer, nn.Linear | BinaryLinear):
        return layer.in_features, layer.out_features
    if isinstance(layer, SqueezeExcite):
        first, second = gate_convs(layer)
        return first.in_channels, second.out_channels
    conv = layer.conv if isinstance(layer, BinaryUnit) else layer
    assert isinstance(conv, nn.Conv2d | BinaryConv2d)
    return conv.in_channels, conv.out_channels


def gate_convs(gate: SqueezeExcite) -> list[nn.Conv2d]:
    """The two convolutions of a squeeze-excite."""
    return [step for step in gate.se if isinstance(step, nn.Conv2d)]


def shortcut_steps(shortcut: nn.Module | None) -> list[nn.Module]:
    """The modules of a unit's shortcut, in order."""
    if shortcut is None:
        return []
    return list(shortcut) if type(shortcut) is nn.Sequential else [shortcut]


def find_obstacle(layer: nn.Module) -> str | None:
    """Why the layer itself has no expand-shrink form, or None."""
    if type(layer) not in _EXPANDABLE:
        return f"a {type(layer).__name__} has no expand-shrink form"
    if isinstance(layer, BinaryUnit):
        return _find_obstacle_in_unit(layer)
    if getattr(layer, "groups", 1) > 1:
        return f"it has groups={layer.groups}, and only a layer with groups=1 has an expand-shrink form"
    return None


def _find_obstacle_in_unit(unit: BinaryUnit) -> str | None:
    for step in shortcut_steps(unit.shortcut):
        if can_be_widened(step) or isinstance(step, (*SPATIAL, PadShortcut)):
            continue
        if type(step) is not nn.Conv2d:
            return f"its shortcut holds a {type(step).__name__}, which has no expand-shrink form"
        if step.groups > 1:
            return f"its shortcut holds a convolution with groups={step.groups}, and only groups=1 can be expanded"
    for part in (unit.norm, unit.inner_act, unit.act):
        if not can_be_widened(part):
            return f"it holds a {type(part).__name__}, which cannot be widened"
    return None


def call_origin(node: fx.Node) -> tuple[str, str]:
    """Top package and name of a called function or method, without underscores: ("torch", "relu")."""
    if isinstance(node.target, str):  # a method of a tensor
        return "torch", node.target.strip("_")
    module = getattr(node.target, "__module__", None) or "torch"
    return module.partition(".")[0], str(getattr(node.target, "__name__", "")).strip("_")


def reads_no_channels(node: fx.Node, name: str, layout: Layout) -> bool:
    """Whether the call only reads sizes of the batch and of space."""
    allowed = (0, 2, 3, -1, -2) if layout == "map" else (0,)
    if name == "size" and len(node.args) == 2:
        return node.args[1] in allowed
    if name == "size" or (name == "getattr" and node.args[1] == "shape"):
        parts = [user for user in node.users if user.target is not operator.getitem or user.users]
        return all(user.target is operator.getitem and user.args[1] in allowed for user in parts)
    return name == "dim" or (name == "getattr" and node.args[1] in ("ndim", "dtype", "device"))


def is_flatten(node: fx.Node, name: str, args: Mapping[int | str, object]) -> bool:
    """Whether the call is flatten(1), x.view(x.size(0), -1) or x.view(x.shape[0], -1), the shape also in brackets."""
    if name == "flatten":
        return args.get(1, args.get("start_dim")) == 1 and args.get(2, args.get("end_dim", -1)) == -1
    shape = node.args[1:] if len(node.args) == 3 else node.args[-1]
    if name not in ("view", "reshape") or not isinstance(shape, list | tuple) or len(shape) != 2 or shape[1] != -1:
        return False
    batch = shape[0]
    return isinstance(batch, fx.Node) and batch.target in ("size", operator.getitem) and batch.args[1:] == (0,)
