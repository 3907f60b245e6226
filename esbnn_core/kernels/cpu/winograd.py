"""Gradients of a 3x3 convolution of stride 1 by Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308), transposed.

Two by two gradients of the sums take 16 products in place of 36. The native library goes from maps to tiles and back
(training_winograd.h), torch.bmm multiplies. Both gradients share the tiles of the incoming one. For an input of signs
and a weight of +-1 one factor of every product is exact, and the results are as near to float64 as those of torch's
convolution, or nearer.
"""

import ctypes
import functools
import math

import torch
from torch import Tensor

from esbnn_core.kernels.cpu.library import Library
from esbnn_core.kernels.cpu.training import addresses_of, numbers_of, served_by

LEAST = 32
"""Channels and filters of a group, and tiles of all images: with fewer the maps cost more than the products save."""
STEP_BYTES = 4 << 20
"""Of tiles at a time, or as many as the weight's: so many images as fit, so that they stay in the caches."""
MOST_BYTES = 256 << 20
"""Of one image's tiles; above it torch's convolution serves, which needs no such buffers."""
X_TO_TILES, GRAD_TO_TILES, TILES_TO_X, WEIGHT_TO_TILES, TILES_TO_WEIGHT = range(5)
OF_WEIGHT = (WEIGHT_TO_TILES, TILES_TO_WEIGHT)


@functools.cache
def _prepared(library: Library) -> ctypes.CDLL:
    library.handle.esbnn_winograd.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    return library.handle


class Tiles:
    """A buffer for the tiles of a few images, or for a weight's filters.

    Args:
        library: that fills and empties it.
        images: at most.
        area: rows and columns of tiles of an image.
        channels: of all groups.
        groups: of the channels.
        padding: rows and columns of the convolution.
        spare: a tile of zeros at the end, without which a tile's 16 numbers are often a multiple of a page apart, of
            which a cache has few places.
    """

    def __init__(
        self,
        library: Library,
        images: int,
        area: tuple[int, int],
        channels: int,
        groups: int,
        padding: tuple[int, int],
        spare: bool = True,
    ) -> None:
        self.library, self.area, self.groups, self.padding, self.spare = library, area, groups, padding, spare
        self.size, self.images = channels // groups, 0
        self.buffer = torch.empty(16 * channels * self._tiles(images), dtype=torch.float32, device="cpu")

    def _tiles(self, images: int) -> int:
        return images * self.area[0] * self.area[1] + self.spare

    def of(self, images: int) -> Tensor:
        """(groups * 16, tiles, channels of a group) of the first images, contiguous: else torch.bmm uses one thread."""
        shape = (self.groups * 16, self._tiles(images), self.size)
        found = self.buffer[: math.prod(shape)].view(shape)
        if self.spare and images != self.images:
            found[:, -1] = 0.0
            self.images = images
        return found

    def step(self, step: int, rows: Tensor, pad_value: float = 0.0) -> None:
        """From a map (n, H, W, C) to its tiles, or back."""
        apart = self._tiles(1 if step in OF_WEIGHT else len(rows)) * self.size
        numbers = numbers_of(*rows.shape, self.groups, *self.area, *self.padding, apart, step)
        pointers = addresses_of(rows, self.buffer)
        _prepared(self.library).esbnn_winograd(self.library.path, numbers, pad_value, pointers)


def gradients(
    grad: Tensor,
    signs: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    pad_value: float,
    groups: int,
    wanted: tuple[bool, bool],
) -> list[Tensor | None] | None:
    """Gradients of the operands of a convolution of stride and dilation 1, or None where torch has to compute them.

    Args:
        grad: (N, O, H', W') float32; copied if it is not channels_last.
        signs: (N, C, H, W) float32, likewise.
        weight: (O, C / groups, 3, 3) float32.
        padding: rows, columns.
        pad_value: of the input's padding.
        groups: of channels and filters.
        wanted: whether those of the input and of the weight are wanted.

    Returns:
        That of the input (N, C, H, W), channels_last, and that of the weight, None where not wanted.
    """
    filters, size = weight.shape[:2]
    images, _, height, width = grad.shape
    area = ((height + 1) // 2, (width + 1) // 2)
    tiles = area[0] * area[1]
    if not grad.is_cpu or tuple(weight.shape[2:]) != (3, 3) or min(filters // groups, size) < LEAST or not images:
        return None
    if images * tiles < LEAST or 24 * tiles > 9 * height * width:  # few products to save, or many pixels to fill up
        return None
    image_bytes = 64 * tiles * (size * groups + filters)
    singles = all(t.dtype == torch.float32 for t in (grad, signs, weight))
    if image_bytes > MOST_BYTES or not singles:
        return None
    rows, grad_rows, taps = (t.permute(0, 2, 3, 1).contiguous() for t in (signs, grad, weight))
    library = served_by(rows, grad_rows, taps)
    if library is None:
        return None
    few = min(images, max(1, max(STEP_BYTES, 64 * filters * size) // image_bytes))
    of_grad = Tiles(library, few, area, filters, groups, padding)
    of_x = Tiles(library, few, area, size * groups, groups, padding)
    own = filters // groups
    of_weight = Tiles(library, 1, (own, 1), size * groups, groups, padding)
    of_total = Tiles(library, 1, (own, 1), size * groups, groups, padding, spare=False)
    numbers, total = of_weight.of(1)[:, :own], of_total.of(1)
    x_rows = torch.empty_like(rows) if wanted[0] else None
    if x_rows is not None:
        of_weight.step(WEIGHT_TO_TILES, taps)
    for first in range(0, images, few):
        part = slice(first, min(first + few, images))
        count = part.stop - first
        of_grad.step(GRAD_TO_TILES, grad_rows[part])
        if wanted[1]:
            of_x.step(X_TO_TILES, rows[part], pad_value)
            transposed = of_grad.of(count).transpose(1, 2)
            if first:
                total.baddbmm_(transposed, of_x.of(count))
            else:
                torch.bmm(transposed, of_x.of(count), out=total)
        if x_rows is not None:
            torch.bmm(of_grad.of(count), numbers, out=of_x.of(count))
            of_x.step(TILES_TO_X, x_rows[part])
    taps_grad = torch.empty_like(taps) if wanted[1] else None
    if taps_grad is not None:
        of_total.step(TILES_TO_WEIGHT, taps_grad)
    return [None if t is None else t.permute(0, 3, 1, 2) for t in (x_rows, taps_grad)]
