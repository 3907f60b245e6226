"""expand_: turn the binary layers of a network into expand-shrink ones, in place, where its graph allows it.

esbnn_core.transforms.expand_graph finds the tensors that are carried at tau*g times their width, and where the copies
of each channel are in them. A layer changes as its input and its output do (papers.md#es-elsewhere):

    carried -> carried   expand-shrink layer, binary or real: tau*g*C -> O/tau, tile tau^2*g
    nominal -> carried   the layer as it is, then Tile(tau*g): the stem, before its BatchNorm
    carried -> nominal   copy 0 of each channel (SliceChannels), then the layer as it is: the classifier

An operation that cannot read a carried tensor gets copy 0 of each channel, cut after the module that made the tensor or
before the one that reads it. What needs its channels in another order (a chunk, groups) gets a SelectChannels there.
The code of the model's forward is never changed.

Layers on tokens (..., C) that the graph does not carry expand by one of three designs
(esbnn_core.transforms.expand_designs).
"""

import dataclasses
import logging

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.errors import InputError
from esbnn_core.layers import (
    BinaryLinear,
    ESBinaryConv2d,
    ESBinaryConvTranspose2d,
    ESBinaryLinear,
    OutputSized,
    SelectChannels,
    SliceChannels,
    Tile,
)
from esbnn_core.layers.base import BinaryLayer, binary_layers
from esbnn_core.layers.widths import Expansion
from esbnn_core.models.change import find_change
from esbnn_core.models.registry import ModelSpec, create_model, model_spec
from esbnn_core.transforms.expand_attributes import widened_attribute
from esbnn_core.transforms.expand_designs import (
    REASONS,
    Tokens,
    find_token_layers,
    token_layers,
    token_rows,
    without,
    without_odd_widths,
)
from esbnn_core.transforms.expand_graph import WidthGraph
from esbnn_core.transforms.expand_layout import Layout, first_copies
from esbnn_core.transforms.expand_modules import (
    check_layer,
    expand_layer,
    expand_unit_children,
    widen,
    widen_tensor,
)
from esbnn_core.transforms.expand_places import Inserted
from esbnn_core.transforms.expand_plan import ESConfig, ExpansionPlan
from esbnn_core.transforms.expand_rules import TRANSPOSED
from esbnn_core.transforms.expand_stream import StreamPlan, widen_parameters_
from esbnn_core.transforms.record import Example
from esbnn_core.transforms.replace import check_no_hooks
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.start import note_copies

logger = logging.getLogger("esbnn")

Row = list[nn.Module]
"""Modules that take the place of one module, in order."""


def plan_expansion(model: nn.Module, config: ESConfig | None = None, example: Example | None = None) -> ExpansionPlan:
    """What expand_ would do; the model is not changed. With tau = groups = 1 the plan is empty.

    Args:
        model: as expand_.
        config: default ESConfig().
        example: as expand_.

    Raises:
        InputError: as expand_, but not for a plan that expands nothing.
    """
    config = config or ESConfig()
    return ExpansionPlan((), {}) if config.expansion.wide == 1 else _analyse(model, config, example)[1]


def expand_(model: nn.Module, config: ESConfig | None = None, example: Example | None = None) -> nn.Module:
    """Turn the binary layers of a network into expand-shrink ones, in place, where its graph allows it.

    Multiply-accumulates and weights of every convolution stay as they were (papers.md#equal-cost). Layers that change
    shape get fresh weights (reset_parameters). Per-channel parameters and running statistics are repeated, also those
    that a forward reads itself (a LayerScale). Everything else keeps its values, and all keep device, dtype and mode.
    An optimizer made before holds the old parameters.

    How much stays plain is logged in one line (logger "esbnn", WARNING), with the first layer and its reason;
    plan_expansion has the whole list. A wrapped module becomes an nn.Sequential under its old name (`conv1` ->
    `conv1.0`, the classifier `fc` -> `fc.1`). In a Sequential with named entries the tile is an entry of its own,
    and an nn.Identity in front of the classifier becomes the SliceChannels. So a network of create_model gets the
    keys of its es_ version.

    Args:
        model: network whose forward torch.fx can trace, in its present mode (train or eval), or any with feed-forward
            parts that it can trace; a submodule that it cannot trace stays as it is.
        config: default ESConfig(). tau = groups = 1 leaves the model as it is.
        example: positional arguments of one forward, for a network that torch.fx cannot trace (a detector): the forward
            is followed as it runs on them, once, in evaluation mode (esbnn_core.transforms.record).

    Returns:
        The same model. Its model_spec is that of the es_ network if it became exactly that one, else it is removed.

    Raises:
        InputError: the forward cannot be traced; no binary layer can be expanded (each is named with the reason); a
            width that tau*groups does not divide; a copy_spread without a shift; a hook of a layer that is
            swapped, or a parameter that it shares with another; a model that is expanded already. The model is then
            unchanged.
    """
    config = config or ESConfig()
    expansion = config.expansion
    if expansion.wide == 1:
        return model
    graph, plan, tokens = _analyse(model, config, example)
    _check_not_empty(model, plan)
    # all modules are built before the first is swapped: an error leaves the model unchanged
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    of_tokens = {names[layer] for layer in token_layers(tokens)}
    of_maps = ExpansionPlan(tuple(name for name in plan.expanded if name not in of_tokens), plan.left)
    rows = {} if graph is None else {modules[n]: row for n, row in _build_rows(graph, of_maps, expansion).items()}
    rows |= token_rows(tokens, expansion, config.design)
    units = {name: unit for name in plan.expanded if isinstance(unit := modules[name], BinaryUnit)}
    children = {unit: expand_unit_children(name, unit, expansion) for name, unit in units.items()}
    gone = [module for module, row in rows.items() if module not in row]
    gone += [part for unit, parts in children.items() for key in parts if (part := getattr(unit, key)) not in gone]
    check_no_hooks("expand_", ((names[part], part) for module in gone for part in module.modules()))
    _check_not_tied(model, gone)
    twin = _build_twin(model, expansion)
    if plan.left:
        logger.warning("%s", summarize_left(model, plan))
    if isinstance(tokens, StreamPlan):
        widen_parameters_(tokens, expansion)
    if graph is not None:
        _widen_parameters(model, graph)
        _widen_attributes(model, graph)
    _swap(model, rows)
    for unit, held in children.items():
        unit.tau, unit.groups = expansion.tau, expansion.groups
        for key, child in held.items():
            setattr(unit, key, child.train(unit.training) if isinstance(child, Tile) else child)
    _update_spec(model, twin)
    return model


def _check_not_tied(model: nn.Module, gone: list[nn.Module]) -> None:
    """Raise InputError for a parameter of two modules of which one is swapped: each would get one of its own."""
    swapped = {part for module in gone for part in module.modules()}
    owners: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            first, other = owners.setdefault(parameter, (f"{name}.{key}", module))
            if other is not module and swapped & {module, other}:
                raise InputError(
                    f"{first} and {name}.{key} must not be one parameter for expand_, which would give each its own: "
                    f"put one module in both places, or tie the weights after it"
                )


def summarize_left(model: nn.Module, plan: ExpansionPlan) -> str:
    """One line on the layers that stay plain: how many, their share of the binary weights, the first one's reason."""
    weights = {name: layer.weight.numel() for name, layer in binary_layers(model)}
    left = sum(number for name, number in weights.items() if any(f"{name}.".startswith(f"{n}.") for n in plan.left))
    name, reason = next(iter(plan.left.items()))
    more = f" (and {len(plan.left) - 1} more, see plan_expansion)" if len(plan.left) > 1 else ""
    share = 100 * left / max(1, sum(weights.values()))
    return (
        f"expand_ leaves {len(plan.left)} of {len(plan.left) + len(plan.expanded)} layers plain, {share:.1f} % of the "
        f"binary weights: {name}, because {reason}{more}"
    )


def _analyse(
    model: nn.Module, config: ESConfig, example: Example | None
) -> tuple[WidthGraph | None, ExpansionPlan, Tokens]:
    """Graph and plan of a plain model, checked for widths and shifts, and what expands among tokens.

    A forward that cannot be traced has no graph; its feed-forward parts may be expanded all the same.
    """
    for name, module in model.named_modules():
        if isinstance(module, Tile | ESBinaryConv2d | ESBinaryConvTranspose2d | ESBinaryLinear):
            raise InputError(
                f"{name} is a {type(module).__name__}, so that {type(model).__name__} is expanded already: "
                f"expand_ takes a plain network, build it again and expand it once"
            )
        if getattr(module, "has_training_parts", False):
            raise InputError(
                f"{type(module).__name__} has parts for training alone, which its forward does not show to expand_: "
                f"build its es_ network with create_model, or call drop_training_parts_() first"
            )
    tokens = find_token_layers(model, config.design)
    graph: WidthGraph | None = None
    try:
        graph = WidthGraph(model, config.expansion, example)
        plan = graph.plan()
    except InputError as error:
        if not token_layers(tokens):
            raise
        plan = ExpansionPlan((), {name: f"{error}" for name, _ in binary_layers(model)})
    for name in plan.expanded:
        assert graph is not None
        check_layer(name, graph.modules[name], config.expansion)
    modules = dict(model.named_modules())
    names = {module: name for name, module in modules.items()}
    ends = {} if graph is None else graph.layers
    taken = {name for name, pair in ends.items() if graph is not None and any(map(graph.is_carried, pair))}
    tokens = without(tokens, {modules[name] for name in taken.union(plan.expanded)})
    tokens, odd = without_odd_widths(tokens, config.expansion)
    layers = {names[layer]: layer for layer in token_layers(tokens)}
    for name, layer in layers.items():
        check_layer(name, layer, config.expansion)
    left = {name: reason for name, reason in plan.left.items() if name not in layers}
    if layers:
        reason = REASONS[config.design]
        left |= {name: reason for name in left if isinstance(modules[name], BinaryLinear)}
    left |= {names[layer]: reason for layer, reason in odd.items()}
    return graph, ExpansionPlan((*plan.expanded, *layers), left), tokens


def _check_not_empty(model: nn.Module, plan: ExpansionPlan) -> None:
    """Raise InputError, with the first reasons, for a plan that expands nothing."""
    if plan.expanded:
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(plan.left.items())[:3])
    if len(plan.left) > 3:
        reasons += f"; and {len(plan.left) - 3} more, plan_expansion lists them"
    raise InputError(
        f"expand_ can expand no layer of {type(model).__name__} ({reasons or 'it has no binary layer'}): join binary "
        f"layers by channel-wise operations (add, pooling, flatten(1)), or place ESBinaryConv2d and Tile by hand"
    )


def _build_rows(graph: WidthGraph, plan: ExpansionPlan, expansion: Expansion) -> dict[str, Row]:
    """name -> the modules that take a module's place; a unit stays and gets other children (expand_unit_children)."""
    rows: dict[str, Row] = {}
    written = set()
    for name, (x, y) in graph.layers.items():
        module = graph.modules[name]
        if name in plan.expanded:
            if isinstance(module, BinaryLayer):
                written.add(y)
            rows[name] = expand_layer(name, module, expansion, graph.order(name))
            continue
        row: Row = []
        if graph.is_carried(x):
            order = graph.order(name)
            row.append(_take(first_copies(order, len(order) // expansion.wide), graph.layout(x).dim))
        if not row or not isinstance(module, nn.Identity):
            row.append(module)
        if graph.is_carried(y):
            layout = graph.layout(y)
            dim = _same_dim(layout.dim, len(layout.roles))
            row.append(
                Tile(expansion.wide, dim)
                if layout.has_whole_copies
                else SelectChannels(layout.order % layout.channels, dim)
            )
        rows[name] = row
    for name, node in graph.widened.items():
        if graph.is_carried(node):
            wide = widen(name, graph.modules[name], expansion, graph.order(name))
            if isinstance(wide, _BatchNorm) and isinstance(node, Node) and node.all_input_nodes[0] in written:
                note_copies(wide, expansion.copies)
            rows[name] = [wide]
    for (name, where), new in graph.inserted.items():
        if not graph.is_carried(new.key):
            continue
        step = _inserted(new, graph.layout(new.key), expansion)
        row = rows.get(name, [graph.modules[name]])
        rows[name] = [step, *row] if where == "before" else [*row, step]
    return {name: row for name, row in rows.items() if row != [graph.modules[name]]}


def _inserted(new: Inserted, layout: Layout, expansion: Expansion) -> nn.Module:
    """The module between two operations, for a tensor of this layout before it (after it for a tile)."""
    if new.made == "carried":
        return Tile(expansion.wide, _same_dim(layout.dim, len(layout.roles)))
    wanted = first_copies(layout.order, layout.channels) if new.positions is None else new.positions
    return _take(wanted, layout.dim)


def _same_dim(dim: int | None, number: int) -> int:
    """The dimension of the channels, -1 for the last one of tokens, whose number of dimensions may change."""
    assert dim is not None
    return -1 if dim == number - 1 and number > 2 else dim


def _take(wanted: Tensor, dim: int | None) -> nn.Module:
    """A SliceChannels if the positions are the first ones, else a SelectChannels."""
    assert dim is not None
    first = torch.equal(wanted, torch.arange(len(wanted), device="cpu"))
    return SliceChannels(len(wanted), dim) if first else SelectChannels(wanted, dim)


def _widen_parameters(model: nn.Module, graph: WidthGraph) -> None:
    """Repeat the values that the forward reads from the model itself, one for each channel."""
    for name, node in graph.parameters.items():
        if not graph.is_carried(node):
            continue
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        old = getattr(module, key)
        wide = widen_tensor(old.detach(), graph.layout(node).order)
        setattr(module, key, nn.Parameter(wide, old.requires_grad) if isinstance(old, nn.Parameter) else wide)


def _widen_attributes(model: nn.Module, graph: WidthGraph) -> None:
    """Multiply the attributes that are widths of carried tensors."""
    for name, node in graph.attributes.items():
        if graph.is_carried(node):
            owner, _, key = name.rpartition(".")
            module = model.get_submodule(owner)
            setattr(module, key, widened_attribute(getattr(module, key), graph.expansion.wide))


def _swap(model: nn.Module, rows: dict[nn.Module, Row]) -> None:
    """Put each row in the place of its module, under every name that the module has."""
    device = next((parameter.device for parameter in model.parameters()), None)
    # named_modules() skips second names
    places = [(parent, key, child) for parent in model.modules() for key, child in parent._modules.items()]
    for parent, key, child in places:
        if child is not None and child in rows:
            _put(parent, key, [_on(step, device) for step in rows[child]], child.training)


def _on(step: nn.Module, device: torch.device | None) -> nn.Module:
    return step.to(device) if isinstance(step, SelectChannels) and device is not None else step


def _put(parent: nn.Module, key: str, row: Row, training: bool) -> None:
    """Put a row of modules in the place of one child."""
    for step in row:
        if isinstance(step, Tile | SliceChannels | SelectChannels):
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
        sized = any(isinstance(step, TRANSPOSED) for step in row)
        wrapped = OutputSized(*row) if sized else nn.Sequential(*row)
        wrapped.training = training
        setattr(parent, key, wrapped)


def _build_twin(model: nn.Module, expansion: Expansion) -> tuple[ModelSpec, nn.Module] | None:
    """ModelSpec and an empty network of the es_ version of a network built by create_model, if it has one."""
    spec = model_spec(model)
    if spec is None:
        return None
    factors = {"tau": expansion.tau, "groups": expansion.groups, "copy_spread": expansion.copy_spread}
    try:
        with torch.device("meta"):
            twin = create_model(f"es_{spec.name.removeprefix('es_')}", **{**spec.options, **factors})
    except InputError:
        return None  # no es_ version, or one without these options
    twin_spec = model_spec(twin)
    assert twin_spec is not None
    return dataclasses.replace(twin_spec, input_size=spec.input_size), twin


def _update_spec(model: nn.Module, twin: tuple[ModelSpec, nn.Module] | None) -> None:
    """Give the expanded model the ModelSpec of its es_ version if it has the same architecture, else none."""
    if model_spec(model) is None:
        return
    if twin is not None and not find_change(model, twin[1]):
        model.model_spec = twin[0]  # type: ignore[assignment]
    else:
        del model.model_spec
