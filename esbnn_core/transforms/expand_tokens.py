"""expand_ on tokens: the feed-forward part of a transformer, designs F1 and F2 (papers.md#es-transformer).

A feed-forward part is a binary linear layer C -> H, what treats each feature alone, and a binary linear layer H -> C.
Only these two change, so that the graph is needed between them alone: where the whole forward cannot be traced, its
parts are.

    F1    C -> H as it is, tile tau*g;  tau*g*H -> C/tau in g groups, tile tau
    F2    tile tau*g;  tau*g*C -> H/tau in g groups, tile tau^2*g;  tau*g*H -> C/tau in g groups, tile tau

After each tile a scale and a move for each feature make the copies differ, as the norm does in BinaryViT.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import fx, nn

from esbnn_core.layers import BinaryLinear, LayerScale, RSign, Sign, Tile
from esbnn_core.layers.widths import Expansion, es_widths
from esbnn_core.transforms.expand_calls import call_origin
from esbnn_core.transforms.expand_modules import binary_options, match, widen
from esbnn_core.transforms.expand_plan import Design
from esbnn_core.transforms.expand_rules import can_be_widened, channels_held, norm_dim
from esbnn_core.transforms.expand_trace import Tracer
from esbnn_core.transforms.undisturbed import undisturbed

_NAMES = (
    "add iadd sub isub mul imul div truediv neg abs clamp relu relu6 leaky_relu elu gelu silu mish softplus sigmoid "
    + "tanh hardtanh hardswish hardsigmoid dropout dropout2d contiguous clone detach float half to"
)
ELEMENTWISE_CALLS = frozenset(_NAMES.split())
"""Functions and methods that compute each feature from that feature, without the underscores of in-place ones."""


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward part.

    Attributes:
        firsts: C -> H, one layer; those of a gated part (SwiGLU, GEGLU), also one C -> 2H.
        second: H -> C.
        norms: LayerNorms over H between them; () in a gated part.
        gated: features of the first layers are multiplied, so that the tiles have to come after that.
    """

    firsts: tuple[BinaryLinear, ...]
    second: BinaryLinear
    norms: tuple[nn.LayerNorm, ...] = ()
    gated: bool = False


class TokenTracer(Tracer):
    """As Tracer; enters no subclass of LayerNorm either, such as timm's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.LayerNorm) or super().is_leaf_module(m, module_qualified_name)


def is_norm(module: object) -> TypeGuard[nn.LayerNorm]:
    """Whether it is a LayerNorm over the last dimension alone, not over the channels of a map."""
    norm = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    return norm and not type(module).__name__.endswith("2d")


def find_feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward parts of a network, each once, by tracing it or, where that fails, its children."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    found = {part.second: part for part in _parts_of(model)}
    # a layer with several names may have readers that a part of the network does not show
    return [p for p in found.values() if all(len(names[layer]) == 1 for layer in (*p.firsts, p.second))]


def _parts_of(module: nn.Module) -> Iterator[FeedForward]:
    if sum(isinstance(part, BinaryLinear) for part in module.modules()) < 2:
        return
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        first, second = cast("object", module.linear1), cast("object", module.linear2)
        alone = all(map(treats_features_alone, (module.activation, module.dropout)))
        if is_expandable(first) and is_expandable(second) and alone:
            yield FeedForward((first,), second)
        return
    if (type(module).__module__, type(module).__name__) == ("diffusers.models.attention", "FeedForward"):
        start, *rest = cast("Any", module).net  # its activation holds the first layer, and may multiply by a gate
        first, linears = getattr(start, "proj", None), [step for step in rest if isinstance(step, BinaryLinear)]
        if is_expandable(first) and len(linears) == 1 and is_expandable(linears[0]):
            yield FeedForward((first,), linears[0], gated=True)
        return
    try:
        with undisturbed(module):
            graph = TokenTracer().trace(module)
    except Exception:  # the module's own code runs under the tracer and may raise anything
        for child in module.children():
            yield from _parts_of(child)
        return
    modules = dict(module.named_modules())
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    read = [str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"]
    for name in dict.fromkeys(called):
        if not isinstance(modules[name], BinaryLinear):  # a module of torch that holds layers
            yield from _parts_of(modules[name])
    for node in graph.nodes:
        gates = _gates_of(node, modules)
        part = _part_from(node, modules)
        norms: tuple[nn.LayerNorm, ...] = ()
        if gates is not None:
            ends = [*gates, node]
        elif part is not None:
            norms, end = part
            ends = [node, end]
        else:
            continue
        places = [str(n.target) for n in ends]
        layers = [layer for name in places if isinstance(layer := modules[name], BinaryLinear)]
        if all(called.count(name) == 1 and name not in read for name in places):
            yield FeedForward(tuple(layers[:-1]), layers[-1], norms, gates is not None)


def _part_from(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[tuple[nn.LayerNorm, ...], fx.Node] | None:
    """The norms and the second layer of the part that begins with the layer of this node."""
    first = modules[str(node.target)] if node.op == "call_module" else None
    if not isinstance(first, BinaryLinear) or not is_expandable(first):
        return None
    norms: list[nn.LayerNorm] = []
    while len(node.users) == 1:
        (node,) = node.users
        if len(node.all_input_nodes) != 1:
            return None
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, BinaryLinear):
            fits = is_expandable(module) and module.in_features == first.out_features
            return (tuple(norms), node) if fits else None
        if is_norm(module) and module.normalized_shape[0] == first.out_features:
            norms.append(module)
        elif node.op == "output" or not (
            call_origin(node)[1] in ELEMENTWISE_CALLS if module is None else treats_features_alone(module)
        ):
            return None
    return None


def _gates_of(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, ...] | None:
    """The first layers of a gated part whose second layer this node calls."""
    layer = modules[str(node.target)] if node.op == "call_module" else None
    if not is_expandable(layer) or len(node.all_input_nodes) != 1:
        return None
    found, products, waiting = dict[fx.Node, None](), 0, list(node.all_input_nodes)
    while waiting:
        node = waiting.pop()
        module = modules[str(node.target)] if node.op == "call_module" else None
        called = call_origin(node)[1] if node.op in ("call_function", "call_method") else ""
        if is_expandable(module):
            if module.out_features % layer.in_features:
                return None
            found[node] = None
        elif len(node.all_input_nodes) == 2 and called == "mul":
            products += 1
            waiting += node.all_input_nodes
        elif len(node.all_input_nodes) == 1 and (
            is_norm(module)
            or treats_features_alone(module)
            or called in ELEMENTWISE_CALLS
            or called in ("chunk", "getitem", "unbind", "split")
        ):
            waiting += node.all_input_nodes
        else:
            return None
    return tuple(found) if products == 1 and found else None


def is_expandable(layer: object) -> TypeGuard[BinaryLinear]:
    """Whether it is a plain binary linear layer with a sign of its own."""
    return type(layer) is BinaryLinear and layer.groups == 1 and type(layer.sign) in (Sign, RSign)


def treats_features_alone(module: object) -> bool:
    """Whether a module or function computes each feature from that feature, without tensors of their number."""
    if isinstance(module, nn.Module):
        return can_be_widened(module) and channels_held(module) is None and norm_dim(module) is None
    return getattr(module, "__name__", "") in ELEMENTWISE_CALLS


def expand_feed_forward(part: FeedForward, expansion: Expansion, design: Design) -> dict[nn.Module, list[nn.Module]]:
    """What takes the place of each module of a feed-forward part, as rows of modules; the part is not changed.

    Layers that change shape get fresh weights, U(+-1/sqrt(fan-in)). Biases and shifts are repeated.

    Args:
        part: of find_feed_forwards.
        expansion: tau, groups and copy_spread.
        design: "F1", or "F2" for a first layer that reads tiled features too.
    """
    wide, second = expansion.wide, part.second
    rows: dict[nn.Module, list[nn.Module]] = {}
    hidden_copies = wide if design == "F1" or part.gated else expansion.copies
    for first in part.firsts:
        if design == "F1":
            row: list[nn.Module] = [first]
        else:
            row = [Tile(wide, dim=-1), wide_linear(first, expansion, wide)]
        if part.gated:  # nominal hidden features, for the product
            if design == "F2":
                rows[first] = [*row, *tile_blocks(expansion.tau, first, second.in_features), affine(first, 1)]
            continue
        rows[first] = [*row, Tile(hidden_copies, dim=-1), affine(first, wide, bias=design == "F2")]
    for norm in part.norms:
        rows[norm] = [wide_norm(norm, wide)]
    entry = [Tile(wide, dim=-1)] if part.gated else []
    rows[second] = [
        *entry,
        wide_linear(second, expansion, hidden_copies),
        *tile_blocks(expansion.tau, second, second.out_features),
        affine(second, 1),
    ]
    return rows


def tile_blocks(tau: int, layer: BinaryLinear, block: int) -> list[nn.Module]:
    """The tiles of O/tau features to O, each block alone: gates and values, or queries, keys and values, stay apart."""
    if tau == 1:
        return []
    if layer.out_features <= block or layer.out_features % block or block % tau:
        return [Tile(tau, dim=-1)]
    return [nn.Unflatten(-1, (layer.out_features // block, block // tau)), Tile(tau, dim=-1), nn.Flatten(-2)]


def wide_linear(layer: BinaryLinear, expansion: Expansion, in_copies: int) -> BinaryLinear:
    """tau*g*I -> O/tau in g groups: the operations and weights of I -> O, without a bias.

    Args:
        layer: plain, I -> O.
        expansion: tau, groups and copy_spread.
        in_copies: how many tiled copies the input holds.
    """
    w = es_widths(layer.in_features, layer.out_features, expansion)
    options = binary_options(layer, widen("", layer.sign, expansion, in_copies=in_copies))
    options["latent_init"] = "fan_in"
    return match(BinaryLinear(w.carried_in, w.filters, groups=w.groups, **options), layer)


def wide_norm(norm: nn.LayerNorm, copies: int) -> nn.LayerNorm:
    """A LayerNorm over `copies` times the features, whose affine is repeated."""
    (features,) = norm.normalized_shape
    new = copy.deepcopy(norm)
    new.normalized_shape = (copies * features,)
    for key, parameter in norm.named_parameters(recurse=False):
        setattr(new, key, nn.Parameter(parameter.detach().repeat(copies), requires_grad=parameter.requires_grad))
    return new


def affine(layer: BinaryLinear, copies: int, bias: bool = True) -> LayerScale:
    """A scale of 1 for each of the tiled outputs of a layer, and a move that starts at the layer's bias."""
    affine = LayerScale(copies * layer.out_features, 1.0)
    affine.to(device=layer.weight.device, dtype=layer.weight.dtype)
    if bias and layer.bias is not None:
        with torch.no_grad():
            affine.move.copy_(layer.bias.repeat(copies))
    return affine
