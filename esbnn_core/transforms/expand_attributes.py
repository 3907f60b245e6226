"""Widths that a module keeps as an attribute and that its forward reads, such as `torch.split(x, self.width, 1)`.

While the forward is traced, such an attribute is a number that remembers where it comes from. Where the tensors that it
goes with are carried, it is multiplied by tau*g on that instance. The source of the class decides which attributes may
be: all that its methods do with one must be to split, slice or reshape a tensor, or to compare it with a shape.
"""

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from esbnn_core.transforms.record_numbers import TracedFloat, TracedInt, Writer, plain, traced

_TAKING = ("split", "split_with_sizes", "narrow", "view", "reshape", "unflatten")
_IDLE_METHODS = ("__init__", "__repr__", "extra_repr")


def attribute(name: str) -> None:
    """Stands in a graph for an attribute of a submodule, by its dotted name."""


@functools.cache
def width_attributes(kind: type[nn.Module]) -> frozenset[str]:
    """Attributes of a class that its methods, as far as their source is there, use as widths of tensors alone."""
    found: set[str] = set()
    other: set[str] = set()
    for each in kind.__mro__:
        if each in (nn.Module, object) or each.__module__.startswith("torch."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):
            return frozenset()
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            method = _method(node, parents)
            if isinstance(node, ast.Attribute) and method is not None and method.name not in _IDLE_METHODS:
                own = {argument.arg for argument in method.args.args[:1]}
                used = isinstance(node.value, ast.Name) and node.value.id in own and _is_width(node, parents)
                (found if used else other).add(node.attr)
    return frozenset(found - other)


def _method(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.FunctionDef | None:
    """The outermost function that the node is in."""
    found = None
    while node in parents:
        node = parents[node]
        found = node if isinstance(node, ast.FunctionDef) else found
    return found


def _is_width(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether the value goes into a split, a slice, a view or a comparison with a shape, through arithmetic at most."""
    parent = parents[node]
    while isinstance(parent, ast.BinOp | ast.UnaryOp | ast.List | ast.Tuple | ast.keyword):
        node, parent = parent, parents[parent]
    if isinstance(parent, ast.Slice):
        return True
    if isinstance(parent, ast.Compare):
        text = ast.unparse(parent)
        return ".shape" in text or ".size(" in text
    if not isinstance(parent, ast.Call) or node is parent.func:
        return False
    name = parent.func.attr if isinstance(parent.func, ast.Attribute) else getattr(parent.func, "id", "")
    return name in _TAKING


@contextmanager
def numbers_that_remember(model: nn.Module, enters: Callable[[nn.Module, str], bool], writer: Writer) -> Iterator[None]:
    """While the forward is traced, widths in attributes are numbers with nodes in its graph.

    Args:
        model: whose attributes are the same afterwards.
        enters: (module, name) -> whether the trace enters the module.
        writer: of the nodes.
    """
    kept: list[tuple[nn.Module, str, Any]] = []
    try:
        for name, module in model.named_modules():
            for key in width_attributes(module.__class__) if enters(module, name) else ():
                value = vars(module).get(key)
                if _is_number(value) or (type(value) in (list, tuple) and value and all(map(_is_number, value))):
                    kept.append((module, key, value))
                    vars(module)[key] = _remembering(f"{name}.{key}".lstrip("."), value, writer)
        yield
    finally:
        for module, key, value in kept:
            vars(module)[key] = value
        for module in model.modules():  # a forward may keep what it has calculated
            for key, value in vars(module).items():
                if isinstance(value, TracedInt | TracedFloat):
                    vars(module)[key] = plain(value)


def _is_number(value: object) -> bool:
    return type(value) is int and value > 1


def _remembering(name: str, value: Any, writer: Writer) -> Any:
    """The value of an attribute, or the values in it, with the node of the attribute made when it is first used."""

    @functools.cache
    def whole() -> fx.Node:
        node = writer.enter_number(attribute, (name,))
        node.meta["value"] = value
        return node

    if isinstance(value, int):
        return traced(value, writer, whole)
    items = [traced(item, writer, functools.partial(_item, writer, whole, at)) for at, item in enumerate(value)]
    return type(value)(items)


def _item(writer: Writer, whole: Callable[[], fx.Node], at: int) -> fx.Node:
    return writer.enter_number(operator.getitem, (whole(), at))


def widened_attribute(value: Any, wide: int) -> Any:
    """The value of an attribute where its tensors are carried."""
    return wide * value if isinstance(value, int) else type(value)(wide * item for item in value)


def numbers(value: Any) -> list[int]:
    """The numbers of an attribute."""
    return [value] if isinstance(value, int) else list(value)
