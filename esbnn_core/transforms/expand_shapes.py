"""What modules and parameters make of the layouts of carried tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from esbnn_core.layers import BinaryLinear
from esbnn_core.layers.widths import Expansion
from esbnn_core.transforms.expand_classes import Key
from esbnn_core.transforms.expand_layout import MAP, Layout, Role
from esbnn_core.transforms.expand_moves import flattened, shuffle_module, unflattened
from esbnn_core.transforms.expand_rules import (
    CONVS,
    LAYERS,
    TRANSPOSED,
    is_spatial,
    layer_groups,
    nominal_widths,
    norm_dim,
    splits_by_group,
)
from esbnn_core.transforms.expand_scope import Fact, NoRule, is_number
from esbnn_core.transforms.expand_sizes import constant


def module_layout(module: nn.Module, layout: Layout, wide: int) -> Layout:
    """Layout of a module's output that has no tensors of its own.

    Raises:
        NoRule: expanded channels cannot pass.
        Wants: they could in another order.
    """
    made: Layout | None = None
    if is_spatial(module):
        made = layout if len(layout.roles) == 4 and layout.dim == 1 else None
    elif isinstance(module, nn.Flatten):
        made = flattened(layout, module.start_dim, module.end_dim)
    elif isinstance(module, nn.Unflatten) and isinstance(module.dim, int):
        given = [constant(int(size)) for size in module.unflattened_size]  # type: ignore[arg-type]
        made = unflattened(layout, module.dim % len(layout.roles), given)
    elif layout.dim == 1 and len(layout.roles) == 4:
        for kind, name, option in _SHUFFLES:
            if type(module) is kind:
                made = shuffle_module(layout, name, getattr(module, option))
    if made is None:
        raise NoRule
    return made


_SHUFFLES: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.ChannelShuffle, "channel_shuffle", "groups"),
    (nn.PixelShuffle, "pixel_shuffle", "upscale_factor"),
    (nn.PixelUnshuffle, "pixel_unshuffle", "downscale_factor"),
)


def reads_one_tensor(node: fx.Node, module: nn.Module, facts: Mapping[Key, Fact]) -> bool:
    """Whether a module is called with one tensor alone; a transposed convolution may get an output_size too."""
    if len(node.all_input_nodes) == 1 and len(node.args) + len(node.kwargs) == 1:
        return True
    if not isinstance(module, TRANSPOSED) or not node.args or node.args[0] is not node.all_input_nodes[0]:
        return False
    return all(is_number(facts[other]) for other in node.all_input_nodes[1:])


def is_gate_conv(module: nn.Module, layout: Layout) -> bool:
    """Whether the module is a convolution along the channels, as that of efficient channel attention is."""
    if type(module) is not nn.Conv1d or (module.in_channels, module.out_channels) != (1, 1):
        return False
    span = module.dilation[0] * (module.kernel_size[0] - 1)
    keeps = module.stride == (1,) and module.padding in ("same", (span / 2,))
    return keeps and layout.roles == ("batch", "one", "channels")


def channel_dim(module: nn.Module) -> int:
    """The dimension of the channels that the module has tensors for."""
    if isinstance(shape := getattr(module, "shape", None), tuple):
        return -len(shape)
    over = norm_dim(module)
    found: int = getattr(module, "channel_dim", 1) if over is None else over
    return found


def needs_whole_copies(module: nn.Module) -> bool:
    """Whether the module's channels must be whole copies one after the other: it treats neighbours together."""
    return isinstance(module, nn.GroupNorm)


def parameter_layout(model: nn.Module, name: str, wide: int) -> Layout | None:
    """Layout of a tensor of one value, or one a channel; None for any other, and for a tensor with two names."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = getattr(module, key, None)  # a constant that a forward makes is noted by torch.fx under a name of its own
    if not isinstance(tensor, Tensor) or key not in {**module._parameters, **module._buffers}:
        return None
    names = [each for each, other in model.named_parameters(remove_duplicate=False) if other is tensor]
    long = [dim for dim, size in enumerate(tensor.shape) if size != 1]
    if len(long) > 1 or len(names) > 1:
        return None
    roles: list[Role] = ["one"] * tensor.dim()
    if not long:
        return Layout(tuple(roles))
    roles[long[0]] = "channels"
    return Layout.whole_copies(roles, tensor.shape[long[0]], wide)


def layer_output_order(layer: nn.Module, expansion: Expansion) -> Tensor:
    """Order of an expanded layer's output: whole copies, but for one that is expanded group by group.

    Such a layer tiles the filters of all groups together. A copy of a group's channels is tau tiles of its filters.
    """
    channels = nominal_widths(layer)[1]
    plain = torch.arange(expansion.wide * channels, device="cpu")
    groups = layer_groups(layer)
    if groups == 1 or not isinstance(layer, CONVS) or not splits_by_group(layer, expansion):
        return plain
    tau, filters = expansion.tau, channels // groups // expansion.tau
    tile, group, place = plain // (groups * filters), plain // filters % groups, plain % filters
    return tile // tau * channels + (group * tau + tile % tau) * filters + place


def group_by_group_order(channels: int, groups: int, wide: int) -> Tensor:
    """Order of the input of a layer that is expanded group by group: all copies of the first group's channels first."""
    inner = channels // groups
    plain = torch.arange(wide * channels, device="cpu")
    group, copy, place = plain // (wide * inner), plain // inner % wide, plain % inner
    return copy * channels + group * inner + place


def merged_groups_order(channels: int, groups: int, expansion: Expansion) -> Tensor:
    """What a layer with tau groups merged into one reads: tau groups' channels, each from another copy.

    Group m of groups/tau reads the nominal groups m, m + groups/tau, ... whose channels its filters are tiled to.
    """
    merged, inner = groups // expansion.tau, channels // groups
    plain = torch.arange(channels, device="cpu")
    group, part, place = plain // (expansion.tau * inner), plain // inner % expansion.tau, plain % inner
    copy = part * expansion.groups + group % expansion.groups
    return copy * channels + (group + part * merged) * inner + place


def fact_by_readers(node: fx.Node, modules: Mapping[str, nn.Module], wide: int) -> Layout | None:
    """Layout of a nominal tensor of which only its readers are known and, if the forward was recorded, its shape.

    Any of its dimensions may count as its channels: a tile along it is right for all that has a rule.
    """
    shape: tuple[int, ...] | None = node.meta.get("shape")
    readers = [modules[str(user.target)] for user in node.users if user.op == "call_module"]
    layers = [each for each in readers if isinstance(each, LAYERS)]
    widths = {nominal_widths(each)[0] for each in layers}
    linear = any(isinstance(each, nn.Linear | BinaryLinear) for each in readers)
    if shape is None:
        return None if linear or len(widths) != 1 else Layout.whole_copies(MAP, widths.pop(), wide)
    if len(shape) < 2:
        return None
    dim = len(shape) - 1 if linear or len(shape) < 4 else 1
    roles: list[Role] = ["batch", *["space"] * (len(shape) - 1)]  # type: ignore[list-item]
    roles[dim] = "channels"
    return Layout.whole_copies(roles, shape[dim], wide)


def parameter_behind(node: fx.Node, reads: Mapping[str, int]) -> fx.Node | None:
    """The parameter that a tensor is a view of and nothing else reads."""
    while node.op in ("call_method", "call_function") and len(node.all_input_nodes) == 1 and len(node.users) == 1:
        node = node.all_input_nodes[0]
    return node if node.op == "get_attr" and len(node.users) == 1 and reads[str(node.target)] == 1 else None
