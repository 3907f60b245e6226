"""What functions and methods of a traced forward make of the layouts of their tensors."""

import operator
from typing import Any

from torch import fx

from esbnn_core.transforms.expand_layout import Layout, joined
from esbnn_core.transforms.expand_moves import BOXES, MOVES
from esbnn_core.transforms.expand_scope import Arguments, Fact, NoRule, Scope, combine, is_number, tensors_of
from esbnn_core.transforms.expand_sizes import Size, calculated, constant, sizes_of

# names of functions and methods, without the underscores of in-place ones
_ELEMENTWISE_NAMES = (
    "add iadd sub isub mul imul div truediv neg abs clamp clamp_min clamp_max relu relu6 leaky_relu elu gelu silu mish "
    + ("softplus sigmoid tanh hardtanh hardswish hardsigmoid selu celu logsigmoid softsign hardshrink softshrink ")
    + ("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout stochastic_depth contiguous clone detach ")
    + ("float half double bfloat16 to type_as maximum minimum where pow square sqrt rsqrt exp log sign addcmul lerp ")
    + ("erf sin cos reciprocal zeros_like ones_like rand_like randn_like masked_fill clip gt lt ge le eq ne")
)
ELEMENTWISE_CALLS = frozenset(_ELEMENTWISE_NAMES.split())
COMPARISONS = ("eq", "ne", "lt", "gt", "le", "ge")
_ON_SIZES = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "int",
    "float",
    "min",
    "max",
    "round",
    "sqrt",
    "pow",
)


def call_fact(node: fx.Node, package: str, name: str, scope: Scope) -> Fact:
    """The fact of a call's value.

    Args:
        node: a call of a function or method.
        package: top package of the function.
        name: of the function or method, without the underscores of in-place ones.
        scope: the facts of its operands.

    Raises:
        NoRule: expanded channels cannot pass.
        Wants: they could in another order.
    """
    arguments = Arguments(node, scope)
    head = arguments.raw[0]
    x = scope.of(head)
    if name == "assert":
        return ()
    if is_number(x) and all(is_number(scope.fact(other)) for other in node.all_input_nodes):
        return _on_sizes(name, x, arguments)
    if package not in ("torch", "_operator", "builtins", "torchvision", "timm"):
        raise NoRule
    if name == "getattr":
        return _attribute(head, x, str(node.args[1]), scope)
    if name in ("size", "dim", "ndimension"):
        shape = _attribute(head, x, "shape" if name == "size" else "ndim", scope)
        return shape if name != "size" or len(arguments.raw) < 2 else _one_of(shape, arguments.number(1, "dim"))
    if name in ("numel", "nelement"):
        return _places_of(node, x, scope)
    if name == "getitem" and isinstance(x, tuple):
        return _one_of(x, node.args[1])
    if name in ("cat", "concat", "concatenate", "stack"):
        return _combine_list(name, head, x, arguments)
    if name in ELEMENTWISE_CALLS:
        return _elementwise(node, scope)
    if not isinstance(x, Layout):
        raise NoRule
    if name in MOVES:
        for other in node.all_input_nodes[1:]:
            if not is_number(scope.fact(other)) and name not in (*BOXES, "expand_as", "view_as", "reshape_as"):
                raise NoRule
        return MOVES[name](x, name, arguments)
    raise NoRule


def _on_sizes(name: str, x: Fact, arguments: Arguments) -> Fact:
    if name == "getitem" and isinstance(x, tuple):
        return _one_of(x, arguments.raw[1])
    if name in (*COMPARISONS, "and", "or", "not", "len"):
        return _compared(name, arguments)
    operands = [arguments.scope.of(value) for value in arguments.raw]
    flat = [item for operand in operands for item in (operand if isinstance(operand, tuple) else (operand,))]
    sizes = [item for item in flat if isinstance(item, Size)]
    if name in ("add", "mul") and any(isinstance(operand, tuple) for operand in operands):
        if name == "add" and all(isinstance(operand, tuple) for operand in operands):
            return operands[0] + operands[1]
        raise NoRule
    if name not in _ON_SIZES:
        raise NoRule
    return calculated(
        name, sizes if len(sizes) == len(operands) else [*sizes, Size(None, None)] if len(sizes) < 2 else sizes
    )


def _compared(name: str, arguments: Arguments) -> tuple[()]:
    """Nothing is known of a truth value but that it must be the same in the nominal and in the carried network."""
    operands = [arguments.scope.of(value) for value in arguments.raw]
    rule = getattr(operator, name, None) if name in COMPARISONS else None
    sizes = [each for each in operands if isinstance(each, Size)]
    if rule is None or len(sizes) != 2 or not any(size.changes for size in sizes):
        return ()
    one, other = sizes
    if None in (one.nominal, one.carried, other.nominal, other.carried):
        raise NoRule
    if rule(one.nominal, other.nominal) != rule(one.carried, other.carried):
        raise NoRule
    return ()


def _one_of(items: tuple[Fact, ...], index: Any) -> Fact:
    if not isinstance(index, int | slice):
        raise NoRule
    try:
        return items[index]
    except IndexError:
        raise NoRule from None


def _attribute(node: Any, x: Fact, name: str, scope: Scope) -> Fact:
    if name in ("dtype", "device", "is_cuda", "requires_grad", "layout"):
        return ()
    if isinstance(x, Layout) and name in ("ndim", "shape"):
        return constant(len(x.roles)) if name == "ndim" else sizes_of(scope.key(node), x)
    if x is None and name == "shape":  # the network's input, or what an operation without a rule has made of it
        return (Size(None, None, "batch"), *(Size(None, None) for _ in range(7)))  # never carried: the same in both
    raise NoRule


def _places_of(node: fx.Node, x: Fact, scope: Scope) -> Size:
    """The number of a tensor's values, known if the forward was recorded: tau*g times as many where it is carried."""
    number = node.meta.get("value")
    if isinstance(x, Layout) and x.has_channels:
        return Size(
            number, None if number is None else scope.wide * number, None, (scope.key(node.all_input_nodes[0]),)
        )
    return Size(number, number)


def _elementwise(node: fx.Node, scope: Scope) -> Layout:
    return combine(tensors_of(node, scope))


def _combine_list(name: str, head: Any, x: Fact, arguments: Arguments) -> Layout:
    nodes = list(head) if isinstance(head, list | tuple) else [head] * len(x if isinstance(x, tuple) else ())
    if not nodes or not all(isinstance(item, Layout) and item.has_channels for item in x):
        raise NoRule
    dim = arguments.number(1, "dim", arguments.named.get("axis", 0))
    operands = list(zip(nodes, x, strict=True))
    number = len(x[0].roles)
    if name == "stack":
        made = combine(operands)
        at = dim % (number + 1)
        return made.with_roles([*made.roles[:at], "space", *made.roles[at:]])
    dim %= number
    if all(item.dim == dim and item.roles == x[0].roles and not item.is_flat for item in x):
        return joined(x)
    if any(item.roles[dim] in ("channels", "flat") or len(item.roles) != number for item in x):
        raise NoRule
    alike = [item.with_roles([*item.roles[:dim], "space", *item.roles[dim + 1 :]]) for item in x]
    return combine(list(zip(nodes, alike, strict=True)))


def call_origin(node: fx.Node) -> tuple[str, str]:
    """Top package and name of a called function or method, without underscores: ("torch", "relu")."""
    if isinstance(node.target, str):  # a method of a tensor
        return "torch", node.target.strip("_")
    module = getattr(node.target, "__module__", None) or "torch"
    if node.target is operator.getitem:
        return "_operator", "getitem"
    return module.partition(".")[0], str(getattr(node.target, "__name__", "")).strip("_")
