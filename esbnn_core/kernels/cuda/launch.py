"""From checked tensors to one launch: the structs of conv.cuh and pack.cu, the steps of the epilogue, the tile."""

import struct
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from esbnn_core.kernels.call import Geometry
from esbnn_core.kernels.checks import words_of
from esbnn_core.kernels.cuda.lanes import PANEL, padded, rows_of
from esbnn_core.kernels.cuda.library import Kernel

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int32: 3}
"""enum Type of conv.cuh; the floating ones are served."""

PRELU, RPRELU, SIGNS, SIGN_SHIFT, RING, RESIDUAL = 1, 2, 4, 8, 16, 32
RESIDUAL_TYPE, OUT_TYPE, WIDE, WORDS, COPY_WORDS = 6, 8, 1 << 10, 1 << 11, 12
"""enum Steps of conv.cuh, and the bit positions after it."""

SPECIALISED = True
"""A kernel for each set of steps. False: one for each tile that reads its steps at run time, slower, compiled once."""

CONV = struct.Struct("11Q23i4x")
PACK = struct.Struct("3Q3q7i4x")
PACK_THREADS, PACK_TURNS = 256, 4
LANES = struct.Struct("2Q7i4x")
LANES_THREADS = 256


@dataclass(frozen=True)
class Tile:
    """The shape of a block.

    Attributes:
        name: of the template in conv.cuh.
        rows: output pixels.
        columns: filters.
        threads: of the block.
    """

    name: str
    rows: int
    columns: int
    threads: int


LARGE, SMALL = Tile("Large", 128, 64, 128), Tile("Small", 32, 32, 128)


class Device(Protocol):
    """What a launch needs of a device: library.Gpu, or the tests' emulator."""

    path: str
    multiprocessors: int

    def launch(self, kernel: Kernel, blocks: tuple[int, int], threads: int, arguments: bytes) -> None: ...


@dataclass(frozen=True)
class Conv:
    """The operator's arguments, contiguous and on one device.

    Attributes:
        x: (N, H, W, words) int32.
        panels: the lanes, which begin with the panels.
        corners: the rest of the lanes.
        scale: as kernels.Epilogue, like the five that follow.
        bias: likewise.
        prelu: likewise.
        rprelu: likewise.
        sign_shift: likewise.
        residual: likewise.
        y: (N, H', W', channels), to be written.
        geometry: as kernels.Geometry.
        kernel: (KH, KW).
        words: of a group.
        filters: of a group.
        padded_filters: with those that fill a group's last tile.
        sign_groups: as kernels.Epilogue.
    """

    x: Tensor
    panels: Tensor
    corners: Tensor
    scale: Tensor | None
    bias: Tensor | None
    prelu: Tensor | None
    rprelu: Tensor | None
    sign_shift: Tensor | None
    residual: Tensor | None
    y: Tensor
    geometry: Geometry
    kernel: tuple[int, int]
    words: int
    filters: int
    padded_filters: int
    sign_groups: int

    def wide(self) -> bool:
        """Whether eight channels side by side can be read and written at once everywhere."""
        parts = (self.scale, self.bias, self.prelu, self.rprelu, self.sign_shift, self.residual, self.y)
        return self.filters % 8 == 0 and all(_aligned(t, 16) for t in parts if t is not None)

    def steps(self) -> int:
        """Conv::steps: which code the kernel needs."""
        ring = self.geometry.pad_value == 0 and max(self.geometry.padding) > 0
        per = self.y.shape[-1] // self.sign_groups if self.sign_groups else 0
        steps = (
            PRELU * (self.prelu is not None)
            | RPRELU * (self.rprelu is not None)
            | SIGNS * (self.sign_groups > 0)
            | SIGN_SHIFT * (self.sign_shift is not None)
            | RING * ring
            | WIDE * self.wide()
            | WORDS * (self.whole_words() and per > 0)
            | TYPES[self.y.dtype] << OUT_TYPE
        )
        if self.residual is not None:
            steps |= RESIDUAL | TYPES[self.residual.dtype] << RESIDUAL_TYPE
        for power in (2, 1):
            if self.words % (1 << power) == 0 and _aligned(self.x, 4 << power):
                return steps | power << COPY_WORDS
        return steps

    def whole_words(self) -> bool:
        """Whether any 32 columns of a block, in any copy, are one word of the packed signs."""
        return self.sign_groups > 0 and self.filters % 32 == 0 and self.y.shape[-1] // self.sign_groups % 32 == 0


def _aligned(tensor: Tensor, size: int) -> bool:
    return tensor.data_ptr() % size == 0


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def tile_for(pixels: int, filters: int, groups: int, multiprocessors: int) -> Tile:
    """The large tile if every multiprocessor gets two of them, else the small one, whose warps divide the depth."""
    blocks = -(-pixels // LARGE.rows) * -(-filters // LARGE.columns) * groups
    return LARGE if filters > SMALL.columns and blocks >= 2 * multiprocessors else SMALL


def launch_conv(device: Device, c: Conv) -> Tensor:
    """Fill c.y; returns the packed signs (N, H', W', words), or an empty (0,) tensor."""
    channels, stride, padding, _, dilation, groups, copies = c.geometry
    images, height, width, _ = c.x.shape
    out_h, out_w = c.y.shape[1:3]
    pixels = images * out_h * out_w
    sign_words = words_of(c.y.shape[-1], c.sign_groups) // c.sign_groups if c.sign_groups else 0
    # where channels of two threads share a word, the kernel sets its bits one by one
    made = torch.empty if c.whole_words() else torch.zeros
    shape = (images, out_h, out_w, c.sign_groups * sign_words) if c.sign_groups else (0,)
    bits = made(shape, dtype=torch.int32, device=c.y.device)
    if c.y.numel() == 0:
        return bits
    tile = tile_for(pixels, c.filters, groups, device.multiprocessors)
    steps = c.steps()
    panels = -(-c.kernel[0] * c.kernel[1] * c.words // PANEL)
    arguments = CONV.pack(
        *map(_address, (c.x, c.panels, c.corners, c.scale, c.bias, c.prelu, c.rprelu, c.sign_shift, c.residual)),
        *(c.y.data_ptr(), bits.data_ptr() if c.sign_groups else 0),
        *(pixels, height, width, out_h, out_w, *c.kernel, *stride, *padding, *dilation),
        *(groups, c.words, panels, c.filters, c.padded_filters, channels // groups, copies),
        *(c.sign_groups, sign_words, steps),
    )
    blocks = (-(-pixels // tile.rows), -(-c.filters // tile.columns) * groups)
    kernel = Kernel("conv", tile.name, device.path, steps if SPECIALISED else -1)
    device.launch(kernel, blocks, tile.threads, arguments)
    return bits


@dataclass(frozen=True)
class Pack:
    """The packing's arguments.

    Attributes:
        x: (images, pixels, channels) floating; one of the last two strides is 1.
        shift: (channels,) or None.
        bits: int32, the words of a pixel innermost; to be written.
        groups: of the channels.
    """

    x: Tensor
    shift: Tensor | None
    bits: Tensor
    groups: int


def launch_pack(device: Device, p: Pack) -> None:
    """Fill p.bits with the bits of sign(x + shift)."""
    images, pixels, channels = p.x.shape
    steps, words = p.x.stride(), p.bits.shape[-1]
    inner = steps[2] == 1
    one_line = (pixels == 1 or steps[1] == channels) and (images == 1 or steps[0] == pixels * channels)
    dense = inner and one_line and channels // p.groups % 32 == 0 and _aligned(p.x, 16) and p.x.numel() < 2**34
    if dense:
        blocks = -(-p.x.numel() // (8 * PACK_THREADS * PACK_TURNS))
    elif inner:
        blocks = -(-p.bits.numel() // (PACK_THREADS // 32 * PACK_TURNS))
    else:
        blocks = -(-pixels // PACK_THREADS) * images * words
    arguments = PACK.pack(
        *map(_address, (p.x, p.shift, p.bits)),
        *steps,
        *(images, pixels, channels, p.groups, words // p.groups, TYPES[p.x.dtype], int(dense)),
    )
    device.launch(Kernel("pack"), (blocks, 1), PACK_THREADS, arguments)


def launch_lanes(device: Device, weight: Tensor, groups: int) -> Tensor:
    """lanes.make_lanes of a contiguous weight (O, KH, KW, words), one launch in place of its operators."""
    filters, *kernel, words = weight.shape
    lanes = torch.empty(sum(rows_of(weight, groups)), 8, dtype=torch.int32, device=weight.device)
    panels = -(-kernel[0] * kernel[1] * words // PANEL)
    per_group = filters // groups
    numbers = (groups, per_group, padded(per_group), *kernel, words, panels)
    arguments = LANES.pack(weight.data_ptr(), lanes.data_ptr(), *numbers)
    device.launch(Kernel("lanes"), (-(-lanes.numel() // LANES_THREADS), 1), LANES_THREADS, arguments)
    return lanes
