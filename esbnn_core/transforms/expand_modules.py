"""The expand-shrink form of each module that expand_ changes; nothing here touches the network itself."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryConvTranspose2d,
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryConvTranspose2d,
    ESBinaryLinear,
    PadShortcut,
    RSign,
    SelectChannels,
    Sign,
    SqueezeExcite,
    Tile,
)
from esbnn_core.layers.widths import Expansion, es_widths, thermometer_shift
from esbnn_core.transforms.expand_layout import positions
from esbnn_core.transforms.expand_rules import (
    CONVS,
    REAL_CONVS,
    Conv,
    channels_held,
    gate_convs,
    layer_groups,
    nominal_widths,
    shortcut_steps,
    splits_by_group,
)
from esbnn_core.transforms.expand_shapes import group_by_group_order, merged_groups_order
from esbnn_core.units.conv import BinaryUnit

Module = TypeVar("Module", bound=nn.Module)


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
    if layer_groups(layer) == 1:
        es_widths(*nominal_widths(layer), expansion, layer=name)
    sign = getattr(layer, "sign", None)
    if expansion.copy_spread and isinstance(sign, Sign) and sign.shift is None:
        raise InputError(
            f"copy_spread of layer {name} must be 0, got {expansion.copy_spread}: it has a bare sign with no shift to "
            f"spread, give it an RSign (BinaryConfig(shift=True)) to use it"
        )


def widen(
    name: str, module: nn.Module, expansion: Expansion, order: Tensor | None = None, in_copies: int | None = None
) -> nn.Module:
    """A module that treats each channel alone or normalises over them, at the carried width.

    Args:
        name: the module's name, for errors alone.
        module: returned itself if it fits any width, else copied.
        expansion: parameters and statistics (C,) are repeated tau*g times; copy_spread is added to an RSign's shift.
        order: of the input's channels (Layout.order); None for whole copies.
        in_copies: how many tiled copies the input holds, for copy_spread; None for the tiles of an expanded layer.

    Raises:
        InputError: a copy_spread for a number of channels that tau does not divide.
    """
    channels = channels_held(module)
    if channels is None:
        return module
    order = torch.arange(expansion.wide * channels, device="cpu") if order is None else order
    new = copy.deepcopy(module)
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.dim() == 1:
            wide = nn.Parameter(widen_tensor(parameter.detach(), order), requires_grad=parameter.requires_grad)
            setattr(new, key, wide)
    for key, buffer in module.named_buffers(recurse=False):
        if buffer.dim() == 1:
            setattr(new, key, widen_tensor(buffer, order))
    for key in ("num_features", "num_parameters", "num_channels", "num_groups"):
        if hasattr(new, key):
            setattr(new, key, getattr(module, key) * expansion.wide)
    shape = getattr(new, "shape", None)
    if isinstance(shape, tuple):
        setattr(new, "shape", tuple(len(order) if size == channels else size for size in shape))  # noqa: B010
    if hasattr(new, "normalized_shape"):
        setattr(new, "normalized_shape", (len(order),))  # noqa: B010  (not an attribute of every module)
    if isinstance(new, RSign):
        new.copies = in_copies or expansion.copies
        trivial = torch.equal(order.cpu(), torch.arange(len(order), device="cpu"))
        new.order = None if trivial else order.cpu()
        if expansion.copy_spread:
            _spread_shift(name, new, channels, expansion, order, new.copies)
    return new


def widen_tensor(tensor: Tensor, order: Tensor) -> Tensor:
    """One value for each position of a carried tensor, from one for each channel."""
    dim = max(range(tensor.dim()), key=lambda at: tensor.shape[at])
    return tensor.index_select(dim, (order % tensor.shape[dim]).to(tensor.device))


def _spread_shift(name: str, sign: RSign, channels: int, expansion: Expansion, order: Tensor, in_copies: int) -> None:
    """Add the thermometer start to the shift of a widened sign."""
    if channels % expansion.tau:
        raise InputError(
            f"copy_spread of sign {name} must be 0, got {expansion.copy_spread}: tau={expansion.tau} does not divide "
            f"its {channels} channels, choose another tau to use it"
        )
    assert sign.shift is not None
    start = thermometer_shift(expansion.wide * channels, in_copies, expansion.copy_spread)
    with torch.no_grad():
        sign.shift.add_(start.to(sign.shift)[order.to(sign.shift.device)])


def expand_layer(
    name: str, layer: nn.Module, expansion: Expansion, order: Tensor | None = None, inside_unit: bool = False
) -> list[nn.Module]:
    """The expand-shrink form of a layer, with fresh weights.

    A layer with groups that have tau*g filters or more is expanded group by group. A binary one with fewer, such as a
    depthwise convolution, has tau groups merged into one, which reads each of its channels from another copy
    (papers.md#es-elsewhere).

    Args:
        name: the layer's name, for errors alone.
        layer: binary layer or unit, real convolution or squeeze-excite; a unit is returned as it is.
        expansion: tau, groups and copy_spread.
        order: of its input's channels (Layout.order); None for whole copies.
        inside_unit: leave the tile of a binary convolution to its unit.

    Returns:
        The layer, with a SelectChannels before it if it needs its input in another order, and a Tile after it if it has
        none of its own.
    """
    inputs, _ = nominal_widths(layer)
    whole = torch.arange(expansion.wide * inputs, device="cpu")
    order = whole if order is None else order
    groups = layer_groups(layer)
    if groups > 1:
        split = splits_by_group(layer, expansion)
        wanted = (
            group_by_group_order(inputs, groups, expansion.wide)
            if split
            else merged_groups_order(inputs, groups, expansion)
        )
    else:  # the weights of a layer without groups are fresh: any order will do
        free = expansion.groups == 1 and not isinstance(layer, BinaryUnit | SqueezeExcite)
        wanted = order if free else whole
    row: list[nn.Module] = [] if torch.equal(order, wanted) else [SelectChannels(positions(order, wanted))]
    if row and isinstance(layer, BinaryLinear):
        row = [SelectChannels(positions(order, wanted), dim=-1)]
    if isinstance(layer, BinaryUnit):
        return [*row, layer]
    if isinstance(layer, SqueezeExcite):
        first, _ = gate_convs(layer)
        reduction = first.in_channels // first.out_channels
        return [*row, match(SqueezeExcite(first.in_channels, reduction, expansion, name), layer)]
    if groups > 1:
        assert isinstance(layer, CONVS)
        return [*row, _expand_grouped(name, layer, expansion, wanted), Tile(expansion.copies)]
    if isinstance(layer, REAL_CONVS):
        return [*row, *_expand_real_conv(name, layer, expansion)]
    assert isinstance(layer, BinaryConv2d | BinaryConvTranspose2d | BinaryLinear)
    return [*row, match(_expand_binary(name, layer, expansion, wanted, inside_unit), layer)]


def _expand_real_conv(name: str, conv: nn.Conv2d | nn.ConvTranspose2d, expansion: Expansion) -> list[nn.Module]:
    w = es_widths(conv.in_channels, conv.out_channels, expansion, layer=name)
    kind = nn.ConvTranspose2d if isinstance(conv, nn.ConvTranspose2d) else nn.Conv2d
    new = kind(w.carried_in, w.filters, groups=w.groups, bias=conv.bias is not None, **_geometry(conv))
    return [match(new, conv), Tile(w.copies)]


def _expand_grouped(name: str, conv: Conv, expansion: Expansion, order: Tensor) -> Conv:
    """A convolution with groups, whose input has its channels in `order`; the tile is not in it."""
    by_group = splits_by_group(conv, expansion)
    groups = conv.groups * expansion.groups if by_group else conv.groups // expansion.tau
    options = {**_geometry(conv), "groups": groups, "bias": conv.bias is not None}
    if isinstance(conv, BinaryConv2d | BinaryConvTranspose2d):
        options |= binary_options(conv, widen(f"{name}.sign", conv.sign, expansion, order))
    new: Conv = type(conv)(len(order), conv.out_channels // expansion.tau, **options)
    return match(new, conv)


def _geometry(conv: Conv) -> dict[str, Any]:
    keys = ["kernel_size", "stride", "padding", "dilation"]
    keys += ["output_padding"] * (conv.transposed is True)
    keys += ["padding_mode"] if isinstance(conv, REAL_CONVS) else ["pad_value"] * (not conv.transposed)
    return {key: getattr(conv, key) for key in keys}


def binary_options(layer: BinaryConv2d | BinaryConvTranspose2d | BinaryLinear, sign: nn.Module) -> dict[str, Any]:
    """Options of a new binary layer like this one, with another sign in front."""
    return {
        "weight_quantizer": copy.deepcopy(layer.quantizer),
        "activation": sign if isinstance(sign, Sign) else None,
        "learned_scale": layer.learned_scale is not None,
        "latent_init": layer.latent_init,
    }


def _expand_binary(
    name: str,
    layer: BinaryConv2d | BinaryConvTranspose2d | BinaryLinear,
    expansion: Expansion,
    order: Tensor,
    inside_unit: bool,
) -> BinaryConv2d | BinaryConvTranspose2d | BinaryLinear:
    w = es_widths(*nominal_widths(layer), expansion, layer=name)
    options = binary_options(layer, widen(f"{name}.sign", layer.sign, expansion, order))
    options["groups"] = w.groups
    new: BinaryConv2d | BinaryConvTranspose2d | BinaryLinear
    if isinstance(layer, BinaryLinear):
        new = ESBinaryLinear(layer.in_features, layer.out_features, tau=expansion.tau, **options)
    elif inside_unit:
        new = BinaryConv2d(w.carried_in, w.filters, **_geometry(layer), **options)
    else:
        kind = ESBinaryConvTranspose2d if isinstance(layer, BinaryConvTranspose2d) else ESBinaryConv2d
        new = kind(layer.in_channels, layer.out_channels, tau=expansion.tau, **_geometry(layer), **options)
    if layer.bias is not None:  # one a filter, tiled with it
        new.bias = nn.Parameter(torch.empty(w.filters))
        new.reset_parameters()
    return new


def match(new: Module, old: nn.Module) -> Module:
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
