"""Transposed binary convolution of packed bits, as a sum of ordinary ones.

With stride s the rows r, r + s, r + 2s, ... of the output (a phase) see the taps k of the kernel for which s divides
r + padding - k * dilation, and one row more of the input for each row more of the output. So a phase is an ordinary
convolution of stride 1 with a part of the kernel, turned around; the s * s phases are interleaved. Phases with equally
many taps share one call, as filters of one convolution. The zeros that a transposed convolution inserts between its
inputs are never seen. An output that no input reaches is 0 before the affine.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esbnn_core import kernels
from esbnn_core.kernels.call import SUMS, Epilogue, Geometry


class TransposedGeometry(NamedTuple):
    """The shape of a transposed binary convolution.

    Attributes:
        channels: C of the input, over all groups.
        stride: rows, columns.
        padding: rows, columns of the full output that are left out on each side.
        output_padding: rows, columns added at its end, after `padding`.
        dilation: rows, columns.
        groups: of the channels and of the filters.
        copies: tiles of the O maps.
    """

    channels: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    copies: int = 1

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """(H', W') by the rule of torch.nn.ConvTranspose2d."""
        height, width = (
            (size[i] - 1) * self.stride[i] - 2 * self.padding[i] + self.dilation[i] * (kernel[i] - 1) + 1
            for i in range(2)
        )
        return height + self.output_padding[0], width + self.output_padding[1]


class Phase(NamedTuple):
    """Every s-th pixel of the output.

    Attributes:
        place: row and column of its first pixel.
        taps: rows and columns of the kernel that it sees, in the order of the input.
        start: where it begins in the output of its part's convolution.
    """

    place: tuple[int, int]
    taps: tuple[tuple[int, ...], tuple[int, ...]]
    start: tuple[int, int]


class Part(NamedTuple):
    """Phases of equally many taps, which one convolution computes.

    Attributes:
        phases: in the order of their filters.
        geometry: of the convolution.
    """

    phases: tuple[Phase, ...]
    geometry: Geometry


def parts_of(kernel: Sequence[int], geometry: TransposedGeometry) -> tuple[Part, ...]:
    """The ordinary convolutions of a transposed one; a phase without taps is in none.

    Args:
        kernel: (KH, KW).
        geometry: of the transposed convolution.
    """
    channels, stride, padding, _, dilation, groups, copies = geometry
    taps = [[_taps(phase, kernel[i], stride[i], padding[i], dilation[i]) for phase in range(stride[i])] for i in (0, 1)]
    step = (dilation[0] // math.gcd(stride[0], dilation[0]), dilation[1] // math.gcd(stride[1], dilation[1]))
    more = _lengths((1, 1), kernel, geometry)
    classes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place in itertools.product(range(stride[0]), range(stride[1])):
        number = len(taps[0][place[0]]), len(taps[1][place[1]])
        if all(number):
            classes.setdefault(number, []).append(place)
    parts = []
    for number, places in classes.items():
        seen = [(taps[0][row], taps[1][column]) for row, column in places]
        # how far before its own row of the input the first tap of a phase reads
        before = [
            [(tap[i][0] * dilation[i] - place[i] - padding[i]) // stride[i] for i in (0, 1)]
            for tap, place in zip(seen, places, strict=True)
        ]
        # the operator pads alike on both sides: enough for the phase that reaches furthest
        pads = [max(0, *(max(b[i], more[i] - 1 - b[i] + step[i] * (number[i] - 1)) for b in before)) for i in (0, 1)]
        starts = [(pads[0] - up, pads[1] - left) for up, left in before]
        phases = tuple(Phase(*each) for each in zip(places, seen, starts, strict=True))
        parts.append(Part(phases, Geometry(channels, (1, 1), (pads[0], pads[1]), 0, step, groups, copies)))
    return tuple(parts)


def _taps(phase: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, ...]:
    """Taps that a phase sees along one dimension, the one of the first row of the input first."""
    return tuple(tap for tap in reversed(range(kernel)) if (phase + padding - tap * dilation) % stride == 0)


def _lengths(size: Sequence[int], kernel: Sequence[int], geometry: TransposedGeometry) -> tuple[int, int]:
    """Rows and columns of the longest phase; they grow with the input's by one each."""
    ends = geometry.output_size((1, 1), kernel)
    return size[0] - 1 - (-ends[0] // geometry.stride[0]), size[1] - 1 - (-ends[1] // geometry.stride[1])


def part_filters(weight: Tensor, part: Part) -> Tensor:
    """The filters of a part's convolution, (phases*O, kh, kw, words), of each group those of the first phase first.

    Args:
        weight: (O, KH, KW, words of a group) int32.
        part: of parts_of.
    """
    filters = weight.unflatten(0, (part.geometry.groups, -1))
    seen = [filters[:, :, list(rows)][:, :, :, list(columns)] for _, (rows, columns), _ in part.phases]
    return torch.stack(seen, 1).flatten(0, 2)


def binary_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    geometry: TransposedGeometry,
    epilogue: Epilogue = SUMS,
    shift: Tensor | None = None,
    filters: Sequence[Tensor] | None = None,
    lanes: Sequence[Tensor | None] | None = None,
    output_size: tuple[int, int] | None = None,
) -> Tensor:
    """Transposed binary convolution: the exact sums, or these times `scale` plus `bias` (contract: esbnn_core.kernels).

    Args:
        x: (N, H, W, words) int32 or (N, C, H, W) floating.
        weight: (O, KH, KW, words of a group) int32, the filters as they are, not turned around.
        geometry: the shape of the transposed convolution.
        epilogue: scale, bias and out_dtype; the default returns the int32 sums.
        shift: (C,), added to a floating x before its sign, or None.
        filters: part_filters of each of parts_of(kernel, geometry), which are otherwise made at every call; they do
            not depend on output_padding.
        lanes: kernels.lanes_of each of `filters`, or None.
        output_size: (H', W') that some output_padding smaller than the stride gives, in place of the geometry's.

    Returns:
        y (N, copies*O, H', W') in channels_last memory.

    Raises:
        TypeError, ValueError: an argument that the contract refuses, by its name; an output without pixels.
    """
    kernel, (rows, columns) = weight.shape[1:3], geometry.stride
    if output_size is not None:  # more than any: only the cut at the end depends on the size, and it always cuts
        geometry = geometry._replace(output_padding=(rows, columns))
    parts = parts_of(kernel, geometry)
    filters = [part_filters(weight, part) for part in parts] if filters is None else filters
    lanes = [None] * len(parts) if lanes is None else lanes
    bits = kernels.pack_sign(x, shift, geometry.groups, 1) if x.is_floating_point() else x
    images, *size = bits.shape[:3]
    whole = geometry.output_size(size, kernel) if output_size is None else output_size
    ends, lengths = geometry.output_size((1, 1), kernel), _lengths(size, kernel, geometry)
    if whole[0] < 1 or whole[1] < 1:
        raise ValueError(f"x must give an output of at least 1x1 pixels, got {size[0]}x{size[1]}, which gives {whole}")
    found: dict[tuple[int, int], Tensor] = {}
    for part, part_weight, part_lanes in zip(parts, filters, lanes, strict=True):
        number = len(part.phases)
        scale, bias = (_repeated(vector, geometry, number) for vector in (epilogue.scale, epilogue.bias))
        steps = epilogue._replace(scale=scale, bias=bias)
        y, _ = kernels.binary_conv2d(bits, part_weight, part.geometry, steps, lanes=part_lanes)
        split = y.permute(0, 2, 3, 1).unflatten(-1, (geometry.copies * geometry.groups, number, -1))
        for index, (place, _, (top, left)) in enumerate(part.phases):
            found[place] = split[:, top : top + lengths[0], left : left + lengths[1], :, index].flatten(3)
    empty = _unreached(bits, weight, geometry, epilogue).expand(images, *lengths, -1)
    lines = [_interleaved([found.get((row, column), empty) for column in range(columns)], 2) for row in range(rows)]
    y = _interleaved(lines, 1)
    if output_size is not None or any(end % step for end, step in zip(ends, geometry.stride, strict=True)):
        y = y[:, : whole[0], : whole[1]].clone(memory_format=torch.contiguous_format)
    return y.contiguous().permute(0, 3, 1, 2)


def _repeated(vector: Tensor | None, geometry: TransposedGeometry, phases: int) -> Tensor | None:
    """A vector (copies*O,) for the filters of several phases."""
    if vector is None or phases == 1:
        return vector
    split = vector.view(geometry.copies * geometry.groups, 1, -1)
    return split.expand(-1, phases, -1).reshape(-1)


def _unreached(bits: Tensor, weight: Tensor, geometry: TransposedGeometry, epilogue: Epilogue) -> Tensor:
    """An output (copies*O,) that no input reaches: 0, or the bias."""
    if epilogue.bias is None:
        return bits.new_zeros(geometry.copies * weight.shape[0])
    return epilogue.bias if epilogue.out_dtype is None else epilogue.bias.to(epilogue.out_dtype)


def _interleaved(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Entry 0 of each along `dim`, then entry 1 of each and so on."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors), dim + 1).flatten(dim, dim + 1)
