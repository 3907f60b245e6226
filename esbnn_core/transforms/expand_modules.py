"""The expand-shrink form of each module that expand_ changes; nothing here touches the network itself."""

import copy
from typing import Any

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryLinear,
    PadShortcut,
    RSign,
    Sign,
    SqueezeExcite,
    Tile,
)
from esbnn_core.layers.widths import Expansion, es_widths, thermometer_shift
from esbnn_core.transforms.expand_rules import channels_held, gate_convs, nominal_widths, shortcut_steps
from esbnn_core.units.conv import BinaryUnit


def check_layer(name: str, layer: nn.Module, expansion: Expansion) -> None:
    """Raise InputError for a layer whose widths tau*groups does not divide, or that has no shift to spread."""
    inner: list[nn.Module] = []
    if isinstance(layer, BinaryUnit):
        inner = [layer.conv, *shortcut_steps(layer.shortcut)]
    elif isinstance(layer, SqueezeExcite):
        inner = [*gate_convs(layer)]
    for step in inner:
        if isinstance(step, BinaryConv2d | nn.Conv2d):
            check_layer(name, step, expansion)
    es_widths(*nominal_widths(layer), expansion, layer=name)
    sign = getattr(layer, "sign", None)
    if expansion.copy_spread and isinstance(sign, Sign) and sign.shift is None:
        raise InputError(
            f"copy_spread of layer {name} must be 0, got {expansion.copy_spread}: it has a bare sign with no shift to "
            f"spread, give it an RSign (BinaryConfig(shift=True)) to use it"
        )


def widen(name: str, module: nn.Module, expansion: Expansion) -> nn.Module:
    """A module that treats each channel alone, at the carried width.

    Args:
        name: the module's name, for errors alone.
        module: returned itself if it fits any width, else copied.
        expansion: parameters and statistics (C,) are repeated tau*g times; copy_spread is added to an RSign's shift.

    Raises:
        InputError: a copy_spread for a number of channels that tau does not divide.
    """
    channels = channels_held(module)
    if channels is None:
        return module
    new = copy.deepcopy(module)
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.dim() == 1:
            wide = nn.Parameter(parameter.detach().repeat(expansion.wide), requires_grad=parameter.requires_grad)
            setattr(new, key, wide)
    for key, buffer in module.named_buffers(recurse=False):
        if buffer.dim() == 1:
            setattr(new, key, buffer.repeat(expansion.wide))
    for key in ("num_features", "num_parameters"):
        if hasattr(new, key):
            setattr(new, key, getattr(module, key) * expansion.wide)
    if isinstance(new, RSign) and expansion.copy_spread:
        _spread_shift(name, new, channels, expansion)
    return new


def _spread_shift(name: str, sign: RSign, channels: int, expansion: Expansion) -> None:
    """Add the thermometer start to the shift of a widened sign."""
    if channels % expansion.tau:
        raise InputError(
            f"copy_spread of sign {name} must be 0, got {expansion.copy_spread}: tau={expansion.tau} does not divide "
            f"its {channels} channels, choose another tau to use it"
        )
    assert sign.shift is not None
    start = thermometer_shift(expansion.wide * channels, expansion.copies, expansion.copy_spread)
    with torch.no_grad():
        sign.shift.add_(start.to(sign.shift))


def expand_layer(name: str, layer: nn.Module, expansion: Expansion, inside_unit: bool = False) -> list[nn.Module]:
    """The expand-shrink form of a layer, with fresh weights.

    Args:
        name: the layer's name, for errors alone.
        layer: binary layer, real convolution or squeeze-excite.
        expansion: tau, groups and copy_spread.
        inside_unit: leave the tile of a binary convolution to its unit.

    Returns:
        One module, or a real convolution and its Tile.
    """
    if isinstance(layer, SqueezeExcite):
        first, _ = gate_convs(layer)
        reduction = first.in_channels // first.out_channels
        return [_match(SqueezeExcite(first.in_channels, reduction, expansion, name), layer)]
    if isinstance(layer, nn.Conv2d):
        return _expand_real_conv(name, layer, expansion)
    assert isinstance(layer, BinaryConv2d | BinaryLinear)
    return [_match(_expand_binary(name, layer, expansion, inside_unit), layer)]


def _expand_real_conv(name: str, conv: nn.Conv2d, expansion: Expansion) -> list[nn.Module]:
    w = es_widths(conv.in_channels, conv.out_channels, expansion, layer=name)
    options: Any = {key: getattr(conv, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    new = nn.Conv2d(w.carried_in, w.filters, groups=w.groups, bias=conv.bias is not None, **options)
    return [_match(new, conv), Tile(w.copies)]


def _expand_binary(
    name: str, layer: BinaryConv2d | BinaryLinear, expansion: Expansion, inside_unit: bool
) -> BinaryConv2d | BinaryLinear:
    w = es_widths(*nominal_widths(layer), expansion, layer=name)
    sign = widen(f"{name}.sign", layer.sign, expansion)
    options: dict[str, Any] = {
        "groups": w.groups,
        "weight_quantizer": copy.deepcopy(layer.quantizer),
        "activation": sign if isinstance(sign, Sign) else None,
        "learned_scale": layer.learned_scale is not None,
        "latent_init": layer.latent_init,
    }
    new: BinaryConv2d | BinaryLinear
    if isinstance(layer, BinaryLinear):
        new = ESBinaryLinear(layer.in_features, layer.out_features, tau=expansion.tau, **options)
    else:
        options |= {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "pad_value", "dilation")}
        if inside_unit:
            new = BinaryConv2d(w.carried_in, w.filters, **options)
        else:
            new = ESBinaryConv2d(layer.in_channels, layer.out_channels, tau=expansion.tau, **options)
    if layer.bias is not None:  # one a filter, tiled with it
        new.bias = nn.Parameter(torch.empty(w.filters))
        new.reset_parameters()
    return new


def _match(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give the new layer the device, dtype, mode and frozen parameters of the old one; returns it."""
    old_parameters = dict(old.named_parameters())
    like = next(iter(old_parameters.values()))
    new.to(device=like.device, dtype=like.dtype).train(old.training)
    for key, parameter in new.named_parameters():
        if key in old_parameters:
            parameter.requires_grad_(old_parameters[key].requires_grad)
    return new


def expand_unit_children(name: str, unit: BinaryUnit, expansion: Expansion) -> dict[str, nn.Module]:
    """The children, by name, that turn a plain unit into an expanded one.

    Args:
        name: the unit's name, for errors alone.
        unit: plain; it is not changed.
        expansion: tau, groups and copy_spread.
    """
    (conv,) = expand_layer(name, unit.conv, expansion, inside_unit=True)
    children = {"conv": conv, "tile": Tile(expansion.copies)}
    children |= {key: widen(name, getattr(unit, key), expansion) for key in ("norm", "inner_act", "act")}
    steps: list[nn.Module] = []
    for index, step in enumerate(shortcut_steps(unit.shortcut)):
        if isinstance(step, PadShortcut):
            steps.append(PadShortcut(expansion.wide))
        elif isinstance(step, nn.Conv2d):
            steps += expand_layer(f"{name}.shortcut.{index}", step, expansion)
        else:
            steps.append(widen(name, step, expansion))
    if steps:
        children["shortcut"] = nn.Sequential(*steps) if isinstance(unit.shortcut, nn.Sequential) else steps[0]
    return children
