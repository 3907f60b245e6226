"""Rows of packed units that hand the packed signs of their outputs to one another."""

from collections import OrderedDict
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.row import Row
from esbnn_core.packed.units import PackedUnit


class PackedChain(nn.Sequential):
    """nn.Sequential, names and all, in which a unit's epilogue packs the signs that the next unit starts from.

    (N, C, H, W) -> (N, C', H', W'). A chain may hold chains: the last unit of one hands its signs to the first unit of
    the next. Any other module between two units runs as usual, and the unit after it packs its own input.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.row = Row()

    def forward(  # type: ignore[override]
        self, x: Tensor, bits: Tensor | None = None, following: PackedLayer | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """The output alone, or with `following` the output and its signs packed for that unit, None where not known."""
        done = self.row.run(self, x, bits, following)
        if done is not None:
            return done if following is not None else done[0]
        children = list(self)
        handed: Tensor | None = bits
        for index, child in enumerate(children):
            after = first_unit(children[index + 1]) if index + 1 < len(children) else following
            if isinstance(child, PackedChain) and after is not None:
                x, handed = child(x, handed, after)
            elif isinstance(child, PackedChain):
                x, handed = child(x, handed), None
            elif isinstance(child, PackedUnit) and after is not None and child.hands_to(after):
                x, handed = child(x, handed, after)
            elif isinstance(child, PackedUnit):
                x, handed = child(x, handed), None
            else:
                x, handed = child(x), None
        return x if following is None else (x, handed)


def first_unit(module: nn.Module) -> PackedUnit | None:
    """The unit that reads a module's input first: the module itself, or the first unit of a chain."""
    if isinstance(module, PackedUnit):
        return module
    if isinstance(module, PackedChain) and len(module):
        return first_unit(module[0])
    return None


def chained(module: nn.Module) -> PackedChain | None:
    """A chain of the same children if `module` is a plain Sequential in which units follow each other, else None."""
    if type(module) is not nn.Sequential:
        return None
    inner = [(key, child, chained(child)) for key, child in module.named_children()]
    children = OrderedDict((key, child if chain is None else chain) for key, child, chain in inner)
    row = list(children.values())
    if any(isinstance(child, PackedChain) for child in row) or any(_hands(a, b) for a, b in pairwise(row)):
        return PackedChain(children)
    return None


def _hands(module: nn.Module, after: nn.Module) -> bool:
    return isinstance(module, PackedUnit) and module.hands_to(after)
