"""Gradients of a 3x3 convolution by Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308), transposed.

Two by two gradients of the sums take 16 products in place of 36, at stride 2 25. The native library goes from maps to
tiles and back (training_winograd.h), torch.bmm multiplies. Both gradients share the tiles of the incoming one. For an
input of signs and a weight of +-1 one factor of every product is exact, and the results are within 1e-6 of float64, as
those of torch's convolution or nearer. The input may be given as it is before its sign: the steps sign it on the way to
tiles, and take its gradient through the estimator on the way back, without a map between them.
"""

import ctypes
import functools
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from esbnn_core.kernels.cpu.library import Library
from esbnn_core.kernels.cpu.training import RULES, addresses_of, numbers_of, served_by, zeros

LANES, LEAST_TILES = 16, 32
"""What divides the channels and filters of a group, since the steps know whole vectors alone; tiles of all images."""
LEAST_PAIRS = {1: 1024, 2: 2048}
"""Channels times filters of a group by stride: with fewer the maps cost more than the products save."""
STEP_BYTES = 4 << 20
"""Of tiles at a time, or as many as the weight's: so many rows of tiles as fit, so that they stay in the caches."""
MOST_BYTES = 256 << 20
"""Of one row of tiles; above it torch's convolution serves, which needs no such buffers."""
SIDES = {1: 4, 2: 5}
"""Numbers of a tile's side by stride."""
MOST_PRODUCTS = {1: 0.67, 2: 0.95}
"""Of those of the plain convolution, by stride."""
X_TO_TILES, GRAD_TO_TILES, TILES_TO_X, WEIGHT_TO_TILES, TILES_TO_WEIGHT = range(5)
OF_WEIGHT = (WEIGHT_TO_TILES, TILES_TO_WEIGHT)


@functools.cache
def _prepared(library: Library) -> ctypes.CDLL:
    packed = ctypes.c_char_p
    library.handle.esbnn_winograd.argtypes = [ctypes.c_int, packed, packed, packed, ctypes.c_void_p]
    return library.handle


class BeforeSign(NamedTuple):
    """What the sign of an input adds to the gradients: the steps take the input's values in place of signs.

    Attributes:
        shift: (C,) float32 of the sign, or None.
        rule: of its estimator, "identity", "clip" or "poly2".
        clip: half width of "clip".
        onto: rows (N*H*W, C) float32 that the input's gradient is added to, in place, or None.
    """

    shift: Tensor | None
    rule: str
    clip: float
    onto: Tensor | None


class Tiles:
    """A buffer for the tiles of a few rows of them, or for a weight's filters.

    Args:
        library: that fills and empties it.
        rows: of tiles, at most.
        area: rows and columns of tiles of an image; of a weight filters of a group, and 1.
        channels: of all groups.
        groups: of the channels.
        padding: rows and columns of the convolution.
        stride: of the convolution, 1 or 2.
        spare: a tile of zeros at the end, without which a tile's numbers are often a multiple of a page apart, of
            which a cache has few places.
    """

    def __init__(
        self,
        library: Library,
        rows: int,
        area: tuple[int, int],
        channels: int,
        groups: int,
        padding: tuple[int, int],
        stride: int,
        spare: bool = True,
    ) -> None:
        self.library, self.area, self.groups, self.padding, self.spare = library, area, groups, padding, spare
        self.size, self.stride, self.side, self.rows = channels // groups, stride, SIDES[stride], 0
        self.buffer = torch.empty(self.side**2 * channels * self._tiles(rows), dtype=torch.float32, device="cpu")
        self.carry: tuple[Tensor, ...] | None = None

    def _tiles(self, rows: int) -> int:
        return rows * self.area[1] + self.spare

    def of(self, rows: int) -> Tensor:
        """(groups * numbers, tiles, channels of a group) of the first rows; contiguous: else bmm uses one thread."""
        shape = (self.groups * self.side**2, self._tiles(rows), self.size)
        found = self.buffer[: math.prod(shape)].view(shape)
        if self.spare and rows != self.rows:
            found[:, -1] = 0.0
            self.rows = rows
        return found

    def step(
        self,
        step: int,
        map_rows: Tensor,
        part: range,
        pad_value: float = 0.0,
        before: BeforeSign | None = None,
        x: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        """From a map to its tiles, or back.

        Args:
            step: which.
            map_rows: the whole map (N, H, W, C).
            part: rows of tiles of all images; those of TILES_TO_X follow each other from call to call.
            pad_value: of X_TO_TILES, what is outside of the map.
            before: a sign. The map that tiles are made of is signed, the one that is made of tiles goes through the
                estimator at `x` and is added to `before.onto`.
            x: as the map.
            total: (C,) float64, to which the latter's sum is added.
        """
        apart = self._tiles(self.area[0] if step in OF_WEIGHT else len(part)) * self.size
        rule, onto = -1, None
        if step == TILES_TO_X and before is not None:
            rule, onto = RULES[before.rule], before.onto
        if step == TILES_TO_X and self.carry is None:
            overlap = self.side - 2 * self.stride
            sizes = (overlap, 2 * self.stride * self.area[1] + overlap, map_rows.shape[3] + 16)
            self.carry = tuple(torch.empty(sizes, dtype=torch.float32, device="cpu") for _ in range(2))
        shape = (*map_rows.shape[1:], self.groups, *self.area, *self.padding, apart)
        numbers = numbers_of(part.start, part.stop, *shape, step, rule, self.stride)
        shift = None if before is None else before.shift
        pointers = addresses_of(map_rows, self.buffer, shift, x, onto, *(self.carry or ()))
        reals = struct.pack("2f", pad_value, 0.0 if before is None else before.clip)
        at = None if total is None else total.data_ptr()
        if _prepared(self.library).esbnn_winograd(self.library.path, numbers, reals, pointers, at):
            raise MemoryError(f"no memory for two rows of pixels of {tuple(map_rows.shape)}")
        if step == TILES_TO_X and self.carry is not None:
            self.carry = self.carry[::-1]


class Gradients(NamedTuple):
    """Of the input (N, C, H, W), channels_last, of the weight, and of the sign's shift (C,) float64, or None."""

    x: Tensor | None
    weight: Tensor | None
    shift: Tensor | None = None


def gradients(
    grad: Tensor,
    signs: Tensor,
    weight: Tensor,
    stride: int,
    padding: tuple[int, int],
    pad_value: float,
    groups: int,
    wanted: tuple[bool, bool],
    before: BeforeSign | None = None,
) -> Gradients | None:
    """Gradients of the operands of a convolution without dilation, or None where torch has to compute them.

    Args:
        grad: (N, O, H', W') float32; copied if it is not channels_last.
        signs: (N, C, H, W) float32, likewise; with `before` the input of the sign.
        weight: (O, C / groups, 3, 3) float32.
        stride: 1 or 2, of rows and columns.
        padding: rows, columns.
        pad_value: of the signs' padding.
        groups: of channels and filters.
        wanted: whether those of the input and of the weight are wanted.
        before: the sign, where the first is wanted of its input and not of the signs.
    """
    filters, size = weight.shape[:2]
    images, _, height, width = grad.shape
    area = ((height + 1) // 2, (width + 1) // 2)
    tiles, all_rows = area[0] * area[1], images * area[0]
    own, numbers = filters // groups, SIDES[stride] ** 2
    if (
        not grad.is_cpu
        or tuple(weight.shape[2:]) != (3, 3)
        or own % LANES
        or size % LANES
        or own * size < LEAST_PAIRS[stride]
    ):
        return None
    # few products to save, or many pixels to fill up
    if images * tiles < LEAST_TILES or numbers * tiles > MOST_PRODUCTS[stride] * 9 * height * width:
        return None
    row_bytes = 4 * numbers * area[1] * (size * groups + filters)
    ends = () if before is None else (before.shift, before.onto)
    singles = all(t is None or t.dtype == torch.float32 for t in (grad, signs, weight, *ends))
    if row_bytes > MOST_BYTES or not singles:
        return None
    rows, grad_rows, taps = (t.permute(0, 2, 3, 1).contiguous() for t in (signs, grad, weight))
    library = served_by(rows, grad_rows, taps, *ends)
    if library is None:
        return None
    if before is not None and before.shift is None:
        before = before._replace(shift=zeros(size * groups))
    few = min(all_rows, max(1, max(STEP_BYTES, 4 * numbers * filters * size) // row_bytes))
    of_grad = Tiles(library, few, area, filters, groups, padding, stride)
    of_x = Tiles(library, few, area, size * groups, groups, padding, stride)
    of_weight = Tiles(library, own, (own, 1), size * groups, groups, padding, stride)
    of_total = Tiles(library, own, (own, 1), size * groups, groups, padding, stride, spare=False)
    weights, total = of_weight.of(own)[:, :own], of_total.of(own)
    x_rows = shift_grad = taps_grad = None
    if wanted[0]:
        # without padding a stride of 2 may leave a row or a column out
        new = torch.empty_like if stride == 1 or min(padding) else torch.zeros_like
        x_rows = new(rows) if before is None or before.onto is None else before.onto.view_as(rows)
        shift_grad = None if before is None else rows.new_zeros(size * groups, dtype=torch.float64)
        of_weight.step(WEIGHT_TO_TILES, taps, range(1))
    for first in range(0, all_rows, few):
        part = range(first, min(first + few, all_rows))
        of_grad.step(GRAD_TO_TILES, grad_rows, part)
        if wanted[1]:
            of_x.step(X_TO_TILES, rows, part, pad_value, before)
            transposed = of_grad.of(len(part)).transpose(1, 2)
            if first:
                total.baddbmm_(transposed, of_x.of(len(part)))
            else:
                torch.bmm(transposed, of_x.of(len(part)), out=total)
        if x_rows is not None:
            torch.bmm(of_grad.of(len(part)), weights, out=of_x.of(len(part)))
            of_x.step(TILES_TO_X, x_rows, part, 0.0, before, rows, shift_grad)
    if wanted[1]:
        taps_grad = torch.empty_like(taps)
        of_total.step(TILES_TO_WEIGHT, taps_grad, range(1))
    x_grad, weight_grad = (None if t is None else t.permute(0, 3, 1, 2) for t in (x_rows, taps_grad))
    return Gradients(x_grad, weight_grad, shift_grad)
