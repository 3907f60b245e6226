"""The designs F1, F2 and F3 behind one option: what expands of a network of tokens, and into what."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from torch import nn

from esbnn_core.layers import BinaryLinear
from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_plan import Design
from esbnn_core.transforms.expand_stream import StreamPlan, plan_stream, stream_rows
from esbnn_core.transforms.expand_tokens import FeedForward, expand_feed_forward, find_feed_forwards

Tokens = list[FeedForward] | StreamPlan
"""What expands: the feed-forward parts in F1 and F2, the whole stream in F3."""

REASONS: Mapping[Design, str] = MappingProxyType(
    {
        "F1": "design F1 expands the feed-forward parts of a transformer alone",
        "F2": "design F2 expands the feed-forward parts of a transformer alone",
        "F3": "design F3 cannot carry its input or its output, which an operation without a rule reads or makes",
    }
)
"""Why a binary linear layer stays plain."""


def find_token_layers(model: nn.Module, design: Design) -> Tokens:
    """What the design expands of the network; nothing in F3 where torch.fx cannot trace the forward."""
    return (plan_stream(model) or []) if design == "F3" else find_feed_forwards(model)


def token_layers(tokens: Tokens) -> list[BinaryLinear]:
    """The binary layers of it."""
    if isinstance(tokens, StreamPlan):
        return list(tokens.layers)
    return [layer for part in tokens for layer in (*part.firsts, part.second)]


def without(tokens: Tokens, taken: Collection[nn.Module]) -> Tokens:
    """What is left where other layers are taken: parts of which none is, or the whole stream or nothing."""
    if isinstance(tokens, StreamPlan):
        return [] if any(layer in taken for layer in tokens.layers) else tokens
    return [part for part in tokens if not {*part.firsts, part.second} & {*taken}]


def without_odd_widths(tokens: Tokens, expansion: Expansion) -> tuple[Tokens, dict[nn.Module, str]]:
    """The feed-forward parts whose widths tau*groups divides, and for the layers of the others the reason."""
    if isinstance(tokens, StreamPlan):
        return tokens, {}
    fitting: list[FeedForward] = []
    odd: dict[nn.Module, str] = {}
    for part in tokens:
        layers = (*part.firsts, part.second)
        widths = [layer.out_features for layer in layers if layer.out_features % expansion.wide]
        if widths:
            reason = f"its feed-forward part has a width {widths[0]}, which tau*groups={expansion.wide} does not divide"
            odd |= dict.fromkeys(layers, reason)
        else:
            fitting.append(part)
    return fitting, odd


def token_rows(tokens: Tokens, expansion: Expansion, design: Design) -> dict[nn.Module, list[nn.Module]]:
    """What takes the place of each module, as rows; nothing is changed.

    Args:
        tokens: of find_token_layers, whose layers check_layer has passed.
        expansion: tau, groups and copy_spread.
        design: as find_token_layers.
    """
    rows: dict[nn.Module, list[nn.Module]] = {}
    if isinstance(tokens, StreamPlan):
        rows = stream_rows(tokens, expansion)
    else:
        for part in tokens:
            rows |= expand_feed_forward(part, expansion, design)
    for old, row in rows.items():
        for step in row:
            if step is not old:
                step.train(old.training)
    return rows
