"""The modules that expand_ has rules for, and what a layer needs to have an expand-shrink form."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.layers import (
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    PadShortcut,
    RPReLU,
    Sign,
    SqueezeExcite,
)
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.widths import Expansion
from esbnn_core.units.attention import BinaryMultiheadAttention
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.self_attention import SelfAttention
from esbnn_core.units.window_attention import WindowAttention

BINARY = (BinaryUnit, BinaryLayer)
REAL_CONVS = (nn.Conv2d, nn.ConvTranspose2d)
TRANSPOSED = (nn.ConvTranspose2d, BinaryConvTranspose2d)
CONVS = (*REAL_CONVS, BinaryConv2d, BinaryConvTranspose2d)
Conv = nn.Conv2d | nn.ConvTranspose2d | BinaryConv2d | BinaryConvTranspose2d
LAYERS = (*BINARY, *REAL_CONVS, nn.Linear, SqueezeExcite)
"""Modules with an input and an output width of their own."""

ATTENTION = (BinaryMultiheadAttention, SelfAttention, WindowAttention)

SPATIAL = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.FractionalMaxPool2d),
    *(nn.Upsample, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
)
_SMOOTH = (nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid)
_SHARP = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Softsign)
_MORE = (nn.CELU, nn.SELU, nn.LogSigmoid, nn.Tanhshrink, nn.RReLU, nn.Identity)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_ELEMENTWISE = (*_SHARP, *_SMOOTH, *_MORE, *_DROPOUT)
_PER_CHANNEL = (_BatchNorm, nn.InstanceNorm2d, nn.PReLU, RPReLU, Sign)

# classes of libraries that the core does not import, by module and name
_LIBRARY_ELEMENTWISE = {
    ("torchvision.ops.stochastic_depth", "StochasticDepth"),
    ("timm.layers.drop", "DropPath"),
    ("timm.layers.drop", "DropBlock2d"),
}
_LIBRARY_SPATIAL = {("timm.layers.pool2d_same", "MaxPool2dSame"), ("timm.layers.pool2d_same", "AvgPool2dSame")}
_LIBRARY_NORMS = {
    ("torchvision.models.convnext", "LayerNorm2d"),
    ("timm.layers.norm", "LayerNorm2d"),
    ("timm.layers.norm", "LayerNorm"),
    ("timm.layers.norm", "GroupNorm"),
    ("timm.layers.norm", "GroupNorm1"),
}
_LIBRARY_SCALES = {("timm.models.metaformer", "Scale")}
_LIBRARY_ROIS = {
    ("torchvision.ops.poolers", "MultiScaleRoIAlign"),
    ("torchvision.ops.roi_align", "RoIAlign"),
    ("torchvision.ops.roi_pool", "RoIPool"),
}

_EXPANDABLE = (BinaryUnit, BinaryLinear, SqueezeExcite, *CONVS)
"""Types with an expand-shrink form; a subclass may compute anything and has none."""


def comes_from_library(module: nn.Module) -> bool:
    """Whether the module is of a class of torchvision or timm that expand_ has a rule for."""
    known = {*_LIBRARY_ELEMENTWISE, *_LIBRARY_SPATIAL, *_LIBRARY_NORMS, *_LIBRARY_SCALES, *_LIBRARY_ROIS}
    return _library_name(module) in known


def _library_name(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__name__


def is_spatial(module: nn.Module) -> bool:
    """Whether the module works on the places of each channel of a map alone, in the same way for all channels."""
    return isinstance(module, SPATIAL) or _library_name(module) in _LIBRARY_SPATIAL


def cuts_boxes(module: nn.Module) -> bool:
    """Whether the module takes boxes out of maps, its first argument, in the same way for all channels."""
    return _library_name(module) in _LIBRARY_ROIS


def norm_dim(module: nn.Module) -> int | None:
    """The dimension of the channels that a LayerNorm, RMSNorm or GroupNorm normalises over; None for other modules."""
    known = type(module) in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm) or _library_name(module) in _LIBRARY_NORMS
    if not known or len(getattr(module, "normalized_shape", (1,))) != 1:
        return None
    return 1 if isinstance(module, nn.GroupNorm) or type(module).__name__.endswith("2d") else -1


def channels_held(module: nn.Module) -> int | None:
    """Number of channels that the module has parameters, statistics or a shape for; None if it fits any width."""
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.InstanceNorm2d):
        return module.num_features if module.affine or module.track_running_stats else None
    if isinstance(module, nn.PReLU):
        return module.num_parameters if module.num_parameters > 1 else None
    if isinstance(module, RPReLU):
        return module.slope.numel()
    if norm_dim(module) is not None:
        shape: Any = getattr(module, "normalized_shape", (getattr(module, "num_channels", None),))
        return int(shape[0])
    if _library_name(module) in _LIBRARY_SCALES:
        return int(max(module.shape))  # type: ignore[arg-type]
    return None if not isinstance(module, Sign) or module.shift is None else module.shift.numel()


def can_be_widened(module: nn.Module) -> bool:
    """Whether the module treats each channel alone or normalises over them, with tensors (C,) or without any."""
    inner = [parameter for child in module.children() for parameter in child.parameters()]
    one_value = all(parameter.numel() == 1 for parameter in inner)  # of an activation inside a norm
    known = isinstance(module, (*_ELEMENTWISE, *_PER_CHANNEL)) or norm_dim(module) is not None
    return one_value and (known or _library_name(module) in {*_LIBRARY_ELEMENTWISE, *_LIBRARY_SCALES})


def nominal_widths(layer: nn.Module) -> tuple[int, int]:
    """Nominal input and output width of a layer."""
    if isinstance(layer, nn.Linear | BinaryLinear):
        return layer.in_features, layer.out_features
    if isinstance(layer, SqueezeExcite):
        first, second = gate_convs(layer)
        return first.in_channels, second.out_channels
    conv = layer.conv if isinstance(layer, BinaryUnit) else layer
    assert isinstance(conv, CONVS)
    return conv.in_channels, conv.out_channels


def layer_groups(layer: nn.Module) -> int:
    """Groups of a layer's own plain form; a unit's and a squeeze-excite's convolutions have none."""
    return 1 if isinstance(layer, BinaryUnit | SqueezeExcite) else getattr(layer, "groups", 1)


def gate_convs(gate: SqueezeExcite) -> list[nn.Conv2d]:
    """The two convolutions of a squeeze-excite."""
    return [step for step in gate.se if isinstance(step, nn.Conv2d)]


def shortcut_steps(shortcut: nn.Module | None) -> list[nn.Module]:
    """The modules of a unit's shortcut, in order."""
    if shortcut is None:
        return []
    return list(shortcut) if type(shortcut) is nn.Sequential else [shortcut]


def find_obstacle(layer: nn.Module, expansion: Expansion) -> str | None:
    """Why the layer itself has no expand-shrink form, or None."""
    if type(layer) not in _EXPANDABLE:
        return f"a {type(layer).__name__} has no expand-shrink form"
    if isinstance(layer, BinaryUnit):
        return _find_obstacle_in_unit(layer)
    groups = layer_groups(layer)
    if groups == 1 or splits_by_group(layer, expansion):
        return None
    if isinstance(layer, REAL_CONVS):
        return f"it is real with groups={groups} of fewer filters than tau*groups, and its sums are fine already"
    if groups % expansion.tau:
        return f"it has groups={groups}, which tau={expansion.tau} does not divide"
    return None


def splits_by_group(layer: nn.Module, expansion: Expansion) -> bool:
    """Whether a convolution with groups has filters enough in each to be expanded group by group."""
    assert isinstance(layer, (*CONVS, BinaryLinear))
    return (nominal_widths(layer)[1] // layer.groups) % expansion.wide == 0


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
