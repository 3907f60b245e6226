"""expand_: turn the binary layers of a network into expand-shrink ones, in place, where its graph allows it.

Source: papers.md#es-elsewhere.

esbnn_core.transforms.expand_graph finds the classes of tensors carried at tau*g times their width. Layers stand between
them:

    carried -> carried   expand-shrink layer, binary or real: tau*g*C -> O/tau, tile tau^2*g
    nominal -> carried   the layer as it is, then Tile(tau*g): the stem, before its BatchNorm
    carried -> nominal   SliceChannels(C), then the layer as it is: the classifier

What is read of a class by an operation that cannot take it carried is cut to the first C channels behind the module
that made it, where one module made it for that operation alone. The code of the model's forward is never changed.
"""

import copy
import dataclasses
import logging
from typing import Any

import torch
from torch import nn

from esbnn_core.errors import InputError, check_factors
from esbnn_core.layers import (
    BinaryConv2d,
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryLinear,
    PadShortcut,
    RSign,
    Sign,
    SliceChannels,
    SqueezeExcite,
    Tile,
)
from esbnn_core.layers.widths import es_widths, thermometer_shift
from esbnn_core.models.registry import ModelSpec, create_model, model_spec
from esbnn_core.transforms.expand_graph import (
    ESConfig,
    ExpansionPlan,
    Flow,
    gate_convs,
    per_channel,
    ports,
    shortcut_steps,
)
from esbnn_core.units.conv import BinaryUnit

logger = logging.getLogger("esbnn")


def _check_widths(name: str, module: nn.Module, config: ESConfig) -> None:
    """Raise InputError for a layer whose widths tau*groups does not divide, or that has no shift to spread."""
    if isinstance(module, BinaryUnit):
        _check_widths(name, module.conv, config)
    inner = shortcut_steps(module.shortcut) if isinstance(module, BinaryUnit) else []
    inner = list(gate_convs(module)) if isinstance(module, SqueezeExcite) else inner
    for step in inner:
        if isinstance(step, nn.Conv2d):
            _check_widths(name, step, config)
    es_widths(*ports(module), config.tau, config.groups, layer=name)
    sign = getattr(module, "sign", None)
    if config.copy_spread and isinstance(sign, Sign) and sign.shift is None:
        raise InputError(
            f"copy_spread={config.copy_spread} was given and layer {name} has a bare sign with no shift to spread: "
            f"leave it at 0 or give the layer an RSign (BinaryConfig(shift=True))"
        )


def _widened(name: str, module: nn.Module, config: ESConfig) -> nn.Module:
    """A copy whose (C,) parameters and statistics are repeated tau*g times; an RSign gets the spread on top."""
    if per_channel(module) is None:
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
        channels, hidden = gate_convs(module)[0].in_channels, gate_convs(module)[0].out_channels
        return [_like(SqueezeExcite(channels, channels // hidden, tau, g, name), module)]
    w = es_widths(*ports(module), tau, g, layer=name)
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
    for index, step in enumerate(shortcut_steps(unit.shortcut)):
        if isinstance(step, PadShortcut):
            row.append(PadShortcut(config.wide))
        elif isinstance(step, nn.Conv2d):
            row += _expanded(f"{name}.shortcut.{index}", step, config)
        else:
            row.append(_widened(name, step, config))
    if row:
        parts["shortcut"] = nn.Sequential(*row) if isinstance(unit.shortcut, nn.Sequential) else row[0]
    return parts


def _rows(flow: Flow, plan: ExpansionPlan) -> dict[str, list[nn.Module]]:
    """name -> what stands in for the module, in a row; a unit stays and changes inside (_unit_parts)."""
    config, rows = flow.config, dict[str, list[nn.Module]]()
    for name, (x, y) in flow.layers.items():
        module = flow.modules[name]
        if name in plan.expanded:
            rows[name] = [module] if isinstance(module, BinaryUnit) else _expanded(name, module, config)
            continue
        row = rows.setdefault(name, [])
        if flow.carried(x):
            row.append(SliceChannels(flow.readouts.get(name) or ports(module)[0]))
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


def _plan(model: nn.Module, config: ESConfig) -> tuple[Flow, ExpansionPlan]:
    for name, module in model.named_modules():
        if isinstance(module, Tile | ESBinaryConv2d | ESBinaryLinear):
            raise InputError(
                f"{name} is a {type(module).__name__}, so that {type(model).__name__} is expanded already: "
                f"expand_ takes a plain network, build it anew and expand it once"
            )
        if getattr(module, "has_training_parts", False):
            raise InputError(
                f"{type(module).__name__} has parts for training alone, which its forward does not show to expand_: "
                f"build its es_ network with create_model, or call drop_training_parts_() first"
            )
    flow = Flow(model, config)
    plan = flow.plan()
    for name in plan.expanded:
        _check_widths(name, flow.modules[name], config)
    return flow, plan


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

    Multiply-accumulates and weights of every convolution stay as they were (papers.md#equal-cost). Layers that change
    shape get fresh weights (reset_parameters); per-channel parameters and running statistics are repeated; everything
    else keeps its values, and all keep device, dtype and mode. An optimizer made before holds the old parameters.

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
        named = "; ".join(f"{name}: {reason}" for name, reason in list(plan.left.items())[:3])
        if len(plan.left) > 3:
            named += f"; and {len(plan.left) - 3} more, plan_expansion lists them"
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
    return dataclasses.replace(found, input_size=spec.input_size), twin
