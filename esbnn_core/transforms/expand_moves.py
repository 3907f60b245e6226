"""Calls of one tensor and numbers: pools, reductions, and all that moves, splits or takes channels.

A rule is (layout of the tensor, name of the call, its arguments) -> fact.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from esbnn_core.transforms.expand_layout import (
    MAP,
    Layout,
    Role,
    pixel_shuffled,
    runs,
    shuffled,
    unshuffled,
)
from esbnn_core.transforms.expand_scope import Arguments, Fact, NoRule, Wants, combine, tensors_of
from esbnn_core.transforms.expand_sizes import Size, reshaped, sizes_of

POOLS = (
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d", "interpolate", "upsample"),
    "boolean_dispatch",  # the name of torch.nn.functional.max_pool2d
)
BOXES = ("roi_align", "roi_pool")
"""What takes boxes, which have no channels, out of a map."""
_REDUCTIONS = ("mean", "sum", "amax", "amin", "norm", "std", "var", "prod", "logsumexp")
_OVER_COPIES = ("mean", "amax", "amin")
"""Reductions that give the same over several copies of a channel as over one."""


def _pool(x: Layout, name: str, arguments: Arguments) -> Layout:
    if len(x.roles) != 4 or any(x.roles[dim] in ("channels", "flat") for dim in (2, 3)):
        raise NoRule
    return x


def _boxes(x: Layout, name: str, arguments: Arguments) -> Layout:
    if x.roles != MAP:
        raise NoRule
    return x


def _reduce(x: Layout, name: str, arguments: Arguments) -> Layout:
    at, key = (2, "dim") if name == "norm" else (1, "dim")
    dims = arguments.number(at, key, arguments.named.get("axis"))
    keep = arguments.number(at + 1, "keepdim", False)
    number = len(x.roles)
    chosen = (
        range(number) if dims is None else [d % number for d in (dims if isinstance(dims, list | tuple) else [dims])]
    )
    gone = [dim for dim in x.channel_dims if dim in chosen]
    if gone and (name not in _OVER_COPIES or x.dim is None):
        raise NoRule
    roles: list[Role] = ["one" if dim in chosen else role for dim, role in enumerate(x.roles)]
    if not keep:
        roles = [role for dim, role in enumerate(roles) if dim not in chosen]
    return Layout(tuple(roles)) if gone else x.with_roles(roles)


def _permute(x: Layout, name: str, arguments: Arguments) -> Layout:
    number = len(x.roles)
    dims = list(range(number))
    if name == "permute":
        given: Any = arguments.named.get("dims", arguments.raw[1:])
        given = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
        dims = [d % number for d in given]
    else:
        one, other = (arguments.number(i, key) % number for i, key in ((1, "dim0"), (2, "dim1")))
        dims[one], dims[other] = other, one
    if sorted(dims) != list(range(number)):
        raise NoRule
    return x.moved(dims)


def _view(x: Layout, name: str, arguments: Arguments) -> Layout:
    if name in ("view_as", "reshape_as"):
        raise NoRule
    targets = arguments.rest("shape")
    if not all(isinstance(size, Size) for size in targets):
        raise NoRule
    return _found(reshaped(x, targets))


def _unflatten(x: Layout, name: str, arguments: Arguments) -> Layout:
    given = arguments.get(2, "sizes")
    if not isinstance(given, tuple):
        raise NoRule
    return _found(unflattened(x, arguments.number(1, "dim") % len(x.roles), given))


def unflattened(x: Layout, dim: int, given: Sequence[Size]) -> Layout | None:
    """After unflatten(dim, given) of the channels; None for another dimension."""
    shape = sizes_of(None, x)
    if shape is None or x.roles[dim] != "channels":
        return None
    return reshaped(x, [*shape[:dim], *given, *shape[dim + 1 :]])


def flattened(x: Layout, start: int, end: int) -> Layout | None:
    """After flatten(start, end)."""
    number = len(x.roles)
    start, end = start % number, end % number
    merged = x.roles[start : end + 1]
    inside = [role for role in merged if role in ("channels", "flat")]
    before, after = x.roles[:start], x.roles[end + 1 :]
    if not inside:
        return x.with_roles([*before, "space" if len(merged) > 1 else merged[0], *after])
    if "batch" in merged or merged[: len(inside)] != tuple(inside):
        return None
    if len(inside) == len(merged) > 1:  # parts of a split number of channels
        at = x.channel_dims.index(start)
        assert x.nominal is not None and x.copy is not None
        shapes = [list(t.shape) for t in (x.nominal, x.copy)]
        joint = [[*s[:at], math.prod(s[at : at + len(inside)]), *s[at + len(inside) :]] for s in shapes]
        return x.split([*before, "channels", *after], *joint)
    if len(inside) > 1:
        return None
    return x.with_roles([*before, "flat" if len(merged) > 1 else merged[0], *after])


def _flatten(x: Layout, name: str, arguments: Arguments) -> Layout:
    return _found(flattened(x, arguments.number(1, "start_dim", 0), arguments.number(2, "end_dim", -1)))


def _squeeze(x: Layout, name: str, arguments: Arguments) -> Layout:
    number = len(x.roles)
    dims = arguments.number(1, "dim")
    if dims is None:
        raise NoRule
    chosen = [d % number for d in (dims if isinstance(dims, list | tuple) else [dims])]
    if any(x.roles[d] not in ("space", "one") for d in chosen):
        raise NoRule
    return x.with_roles([role for d, role in enumerate(x.roles) if d not in chosen])


def _unsqueeze(x: Layout, name: str, arguments: Arguments) -> Layout:
    at = arguments.number(1, "dim") % (len(x.roles) + 1)
    return x.with_roles([*x.roles[:at], "one", *x.roles[at:]])


def _expand(x: Layout, name: str, arguments: Arguments) -> Layout:
    if name == "expand_as":
        (_, own), *others = tensors_of(arguments.node, arguments.scope)
        roles = own.roles if not others else others[0][1].roles
        own_roles = ["one"] * (len(roles) - len(own.roles)) + list(own.roles)
        if any(one not in ("one", "space", other) for one, other in zip(own_roles, roles, strict=True)):
            raise NoRule
        if not own.has_channels and others and others[0][1].has_channels:
            raise NoRule
        return combine([(arguments.node.all_input_nodes[0], own), *others])
    targets = arguments.rest("size")
    missing = len(targets) - len(x.roles)
    if missing < 0 or not all(isinstance(size, Size) for size in targets):
        raise NoRule
    old: list[Role] = [*["one"] * missing, *x.roles]  # type: ignore[list-item]
    for role, size in zip(old, targets, strict=True):
        if size.nominal != -1 and (role in ("channels", "flat") or size.sources) and size.role != role:
            raise NoRule
    kinds = [
        (size.role if size.role in ("batch", "space") else "space")
        if role == "one" and size.nominal not in (1, -1)
        else role
        for role, size in zip(old, targets, strict=True)
    ]
    return x.with_roles(kinds)


def _pad(x: Layout, name: str, arguments: Arguments) -> Layout:
    given = arguments.get(1, "pad")
    if not isinstance(given, tuple) or len(given) // 2 > len(x.roles):
        raise NoRule
    for pair in range(len(given) // 2):
        zero = all(isinstance(size, Size) and size.nominal == 0 for size in given[2 * pair : 2 * pair + 2])
        if x.roles[-1 - pair] in ("channels", "flat", "batch") and not zero:
            raise NoRule
    return x


def _softmax(x: Layout, name: str, arguments: Arguments) -> Layout:
    dim = arguments.number(1, "dim")
    if dim is None or x.roles[dim] in ("channels", "flat", "batch"):
        raise NoRule
    return x


def _shuffle(x: Layout, name: str, arguments: Arguments) -> Layout:
    number = arguments.number(1, "groups" if name == "channel_shuffle" else f"{name.split('_')[1][:2]}scale_factor")
    if x.dim != 1 or x.is_flat:
        raise NoRule
    return _found(shuffle_module(x, name, number))


def shuffle_module(x: Layout, name: str, number: int) -> Layout | None:
    """After channel_shuffle, pixel_shuffle or pixel_unshuffle of (N, C, H, W)."""
    rules = {"channel_shuffle": shuffled, "pixel_shuffle": pixel_shuffled, "pixel_unshuffle": unshuffled}
    return rules[name](x, number)


def _pieces(x: Layout, name: str, arguments: Arguments) -> tuple[Layout, ...]:
    """chunk, split, tensor_split and unbind."""
    dim = arguments.number(1 if name == "unbind" else 2, "dim", 0) % len(x.roles)
    if name == "unbind":
        if dim not in x.channel_dims or x.dim is not None:
            raise NoRule
        at = x.channel_dims.index(dim)
        assert x.nominal is not None and x.copy is not None
        if x.nominal.shape[at] != x.copy.shape[at]:
            raise NoRule
        return tuple(_found(x.taken(dim, i, i)) for i in range(x.nominal.shape[at]))
    given = arguments.get(1, {"chunk": "chunks"}.get(name, "split_size_or_sections"))
    if dim not in x.channel_dims:
        if isinstance(given, tuple):
            return (x,) * len(given)
        if name == "chunk" and isinstance(given, Size) and given.nominal:
            return (x,) * given.nominal
        raise NoRule
    if x.dim is None or x.is_flat or name == "tensor_split":
        raise NoRule
    assert x.copy is not None
    widths = [_widths(name, total, given, world) for total, world in ((x.channels, 0), (x.copy.numel(), 1))]
    return _cut(x, dim, widths[0], widths[1], arguments)


def _widths(name: str, total: int, given: Fact, world: int) -> list[int]:
    """Widths of the pieces of `total` channels, in the nominal world (0) or the carried one (1)."""
    sizes = [given] if isinstance(given, Size) else list(given) if isinstance(given, tuple) else []
    numbers = [(size.nominal, size.carried)[world] for size in sizes if isinstance(size, Size)]
    if not numbers or len(numbers) != len(sizes) or any(number is None or number < 1 for number in numbers):
        raise NoRule
    if isinstance(given, tuple):
        return [int(number or 0) for number in numbers]
    assert numbers[0] is not None
    step = -(-total // numbers[0]) if name == "chunk" else numbers[0]
    return [min(step, total - start) for start in range(0, total, step)]


def _cut(x: Layout, dim: int, nominal: list[int], carried: list[int], arguments: Arguments) -> tuple[Layout, ...]:
    """Pieces of the given widths along the one dimension with channels."""
    assert x.copy is not None
    wide = arguments.scope.wide
    if sum(nominal) != x.channels:
        raise NoRule
    plain = tuple(Layout.whole_copies(x.roles, width, wide) for width in nominal)
    if [wide * width for width in nominal] != carried:
        raise NoRule(plain)  # a number in the code where the number of channels had to be read from the tensor
    parts, n, c = [], 0, 0
    for one, other in zip(nominal, carried, strict=True):
        parts.append(x.taken(dim, slice(n, n + one), slice(c, c + other)))
        n, c = n + one, c + other
    if any(part is None for part in parts):
        raise Wants((arguments.node.all_input_nodes[0], runs(nominal, wide)), nominal=plain)
    return tuple(part for part in parts if part is not None)


def _getitem(x: Layout, name: str, arguments: Arguments) -> Layout:
    given = arguments.get(1, "index")
    items = list(given) if isinstance(given, tuple) else [given]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        used = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (len(x.roles) - used)
    dim = 0
    for item in items:
        if item is None:
            x = x.with_roles([*x.roles[:dim], "one", *x.roles[dim:]])
            dim += 1
            continue
        if dim >= len(x.roles) or not isinstance(item, slice | Size):
            raise NoRule
        whole = isinstance(item, slice) and (item.start, item.stop, item.step) == (None, None, None)
        if dim in x.channel_dims and not whole:
            x = _taken(x, dim, item, arguments)
        elif isinstance(item, Size):
            x = x.with_roles([*x.roles[:dim], *x.roles[dim + 1 :]])
        dim += isinstance(item, slice)
    return x


def _taken(x: Layout, dim: int, item: Any, arguments: Arguments) -> Layout:
    """One index or slice along a dimension with channels."""
    assert x.nominal is not None and x.copy is not None
    if isinstance(item, Size):
        if x.dim is not None or item.nominal is None or item.nominal != item.carried:
            raise NoRule
        return _found(x.taken(dim, item.nominal, item.nominal))
    bounds = []
    for world, tensor in enumerate((x.nominal, x.copy)):
        ends = [
            part if part is None else (part.nominal, part.carried)[world] for part in (item.start, item.stop, item.step)
        ]
        if any(
            end is None and part is not None for end, part in zip(ends, (item.start, item.stop, item.step), strict=True)
        ):
            raise NoRule
        bounds.append(range(tensor.shape[x.channel_dims.index(dim)])[slice(*ends)])
    nominal, carried = (slice(r.start, r.stop, r.step) for r in bounds)
    part = x.taken(dim, nominal, carried)
    if part is not None:
        return part
    start, stop = bounds[0].start, bounds[0].stop
    wide = arguments.scope.wide
    indices = arguments.get(1, "index")
    if x.dim is None or len(bounds[0]) == 0 or not all(isinstance(each, slice) for each in indices):
        raise NoRule
    plain = Layout.whole_copies(x.roles, len(bounds[0]), wide)
    if bounds[0].step != 1 or (bounds[1].start, bounds[1].stop) != (wide * start, wide * stop):
        raise NoRule(plain)
    widths = [width for width in (start, stop - start, x.channels - stop) if width]
    raise Wants((arguments.node.all_input_nodes[0], runs(widths, wide)), nominal=plain)


def _found(layout: Layout | None) -> Layout:
    if layout is None:
        raise NoRule
    return layout


MOVES: dict[str, Callable[[Layout, str, Arguments], Fact]] = {
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims"), _permute),
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("channel_shuffle", "pixel_shuffle", "pixel_unshuffle"), _shuffle),
    **dict.fromkeys(("chunk", "split", "unbind", "tensor_split"), _pieces),
    **dict.fromkeys(BOXES, _boxes),
    "unflatten": _unflatten,
    "flatten": _flatten,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "pad": _pad,
    "getitem": _getitem,
}
