"""Rows of real layers in which a max-pooling goes before the norm that it follows."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # type: ignore[attr-defined]

from esbnn_core.kernels.cpu.real import Norm, pool_before_norm
from esbnn_core.kernels.direct import unwatched
from esbnn_core.layers import Tile
from esbnn_core.packed.pools import PackedMaxPool2d
from esbnn_core.packed.watch import hooked
from esbnn_core.units.folding import folds


class PackedStem(nn.Sequential):
    """nn.Sequential, names, order and all, with the same numbers in every bit.

    Where a max-pooling follows a BatchNorm (of copies of a map, in ES networks), it is done first, on fewer channels,
    and the norm then has fewer pixels. While anything watches, in training and for a layout or a type that the kernel
    does not read, the children run as they stand.
    """

    @classmethod
    def of(cls, row: nn.Module) -> "PackedStem | None":
        """A row of the same children if `row` is a plain Sequential with such a pooling, else None."""
        if type(row) is not nn.Sequential or not any(_after_norm(list(row), i) for i in range(len(row))):
            return None
        return cls(OrderedDict(row._modules))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        children = list(self)
        i = 0
        while i < len(children):
            row = _after_norm(children, i)
            y = _pool_first(x, *row) if row and unwatched(x) else None
            if y is None:
                x = children[i](x)
            else:
                x = y
            i += 1 if y is None else len(row)
        return x


def _after_norm(children: list[nn.Module], i: int) -> list[nn.Module]:
    """From child i on a norm and a max-pooling, with a tile before them where there is one; else nothing."""
    tile = children[i]
    count = 3 if type(tile) is Tile and tile.dim == 1 else 2
    row = children[i : i + count]
    fits = len(row) == count and type(row[-2]) is nn.BatchNorm2d and type(row[-1]) is PackedMaxPool2d
    return row if fits else []


def _pool_first(x: Tensor, *row: nn.Module) -> Tensor | None:
    """The row's output with the pooling before tile and norm; None where its modules have to run as they stand."""
    norm, pool = row[-2:]
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(pool, PackedMaxPool2d)
    if hooked(*row) or _has_any_global_hook() or not folds(norm):
        return None
    copies = row[0].copies if isinstance(row[0], Tile) else 1
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    vectors = [t for t in (norm.weight, norm.bias) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in vectors):
        return None
    if x.dim() != 4 or any(len(t) != copies * x.shape[1] for t in (*vectors, mean, variance)):
        return None
    y = pool_before_norm(x, pool.window, Norm(norm.weight, norm.bias, mean, variance, norm.eps))
    normed: Tensor | None = None if y is None else norm(y)
    return normed
