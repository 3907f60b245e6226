"""Steps on real maps with their channels last: recorded into a program, or each run as a program of its own.

The functions that run one return None where the library does not serve and torch has to. Means over windows are torch's
in every bit; the others may fuse products with additions or add in an order of their own.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from esbnn_core.kernels.cpu.library import Library
from esbnn_core.kernels.cpu.program import Buffer, Given, Place, Program, Recorder, Step
from esbnn_core.kernels.cpu.real import RealFilters, Window, library_for

LAST = torch.channels_last


class Map(NamedTuple):
    """A float32 map in channels_last that a program reads or writes.

    Attributes:
        place: where it is.
        shape: (N, C, H, W).
    """

    place: Place
    shape: tuple[int, int, int, int]

    @classmethod
    def buffer(cls, shape: tuple[int, int, int, int]) -> "Map":
        """A map in memory of the program's own."""
        images, channels, height, width = shape
        return cls(Buffer(4 * images * channels * height * width), shape)


class Mean(NamedTuple):
    """An average pooling without padding.

    Attributes:
        kernel: height and width.
        stride: rows and columns.
        ceil: whether the last windows may be cut where the image ends; they then count the pixels that they have.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    ceil: bool

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output as torch has them, not positive where the kernel has no place."""
        sizes = []
        for side, kernel, stride in zip((height, width), self.kernel, self.stride, strict=True):
            size = (side - kernel + (stride - 1 if self.ceil else 0)) // stride + 1
            sizes.append(size - 1 if self.ceil and (size - 1) * stride >= side else size)
        return sizes[0], sizes[1]


def record_mean(recorder: Recorder, x: Map, mean: Mean) -> Map | None:
    """The average pooling of a map."""
    images, channels, height, width = x.shape
    size = mean.output(height, width)
    if min(*size, *x.shape) < 1:
        return None
    y = Map.buffer((images, channels, *size))
    numbers = (images, height, width, channels, *size, *mean.kernel, *mean.stride, 0, 0, channels)
    recorder.add(Step.AVERAGE_POOL, numbers, (x.place, y.place))
    return y


def record_conv(recorder: Recorder, x: Map, filters: RealFilters, window: Window) -> Map | None:
    """What esbnn_core.kernels.cpu.real.real_conv2d computes without a pool."""
    images, channels, height, width = x.shape
    size = window.output(height, width)
    held = (filters.lanes, filters.bias)
    if min(*size, *x.shape, filters.number) < 1 or not all(t.is_cpu and t.dtype == torch.float32 for t in held):
        return None
    y = Map.buffer((images, filters.number, *size))
    flat = (*window.kernel, *window.stride, *window.padding)
    places = (x.place, y.place, *(t.data_ptr() for t in held))
    recorder.add(Step.REAL_CONV, (images, height, width, channels, *size, *flat, filters.number), places)
    return y


def record_copies(recorder: Recorder, x: Map, scale: Tensor, offset: Tensor, threads: int) -> Map | None:
    """As many copies of the channels as scale and offset (copies*C,) have, each with its factor and offset."""
    if not all(t.is_cpu and t.dtype == torch.float32 and t.is_contiguous() for t in (scale, offset)):
        return None
    images, _, height, width = x.shape
    y = Map.buffer((images, len(scale), height, width))
    recorder.add(*_copies_step(x.shape, len(scale), threads), (x.place, y.place, scale.data_ptr(), offset.data_ptr()))
    return y


def _copies_step(shape: tuple[int, ...], out: int, threads: int) -> tuple[Step, tuple[int, ...]]:
    images, channels, height, width = shape
    pixels = height * width
    shares = min(pixels, 4 * threads) if threads > 1 else 1
    return Step.TILED_AFFINE, (images, pixels, channels, out // channels, shares)


def average_pool2d(x: Tensor, mean: Mean) -> Tensor | None:
    """torch's avg_pool2d without padding in every bit, of x (N, C, H, W) in channels_last and in no other layout."""
    library = library_for(x)
    if library is None or x.dim() != 4 or not x.is_contiguous(memory_format=LAST) or x.is_contiguous():
        return None
    found = _average_program(library, x.shape, mean, torch.get_num_threads())
    if found is None:
        return None
    program, size = found
    y = torch.empty((*x.shape[:2], *size), dtype=torch.float32, memory_format=LAST)
    program.run(x.data_ptr(), y.data_ptr())
    return y


@functools.lru_cache(1024)
def _average_program(
    library: Library, shape: torch.Size, mean: Mean, threads: int
) -> tuple[Program, tuple[int, int]] | None:
    recorder = Recorder()
    images, channels, height, width = shape
    y = record_mean(recorder, Map(Given(0), (images, channels, height, width)), mean)
    if y is None:
        return None
    assert isinstance(y.place, Buffer)
    return recorder.finish(library, threads, 2, {y.place: Given(1)}), y.shape[2:]


def means(x: Tensor) -> Tensor | None:
    """The mean of each channel, (N, C, H, W) -> (N, C, 1, 1); sums of 64 pixels are float32, their sum is float64."""
    library = library_for(x)
    if library is None or x.dim() != 4 or x.numel() == 0:
        return None
    images, channels, _, _ = shape = x.shape
    last = x.contiguous(memory_format=LAST)
    y = torch.empty_strided((images, channels, 1, 1), (channels, 1, channels, channels), dtype=torch.float32)
    _means_program(library, shape, torch.get_num_threads()).run(last.data_ptr(), y.data_ptr())
    return y if last is x else y.contiguous()


@functools.lru_cache(1024)
def _means_program(library: Library, shape: torch.Size, threads: int) -> Program:
    recorder = Recorder()
    images, channels, height, width = shape
    recorder.add(Step.MEANS, (images, height * width, channels), (Given(0), Given(1)))
    return recorder.finish(library, threads, 2)


def tiled_affine(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor | None:
    """As record_copies: (N, C, H, W) -> (N, copies*C, H, W) in channels_last."""
    library = library_for(x, scale, offset)
    if library is None or x.dim() != 4 or x.numel() == 0:
        return None
    if not (scale.is_contiguous() and offset.is_contiguous()):
        return None
    images, _, height, width = x.shape
    x = x.contiguous(memory_format=LAST)
    y = torch.empty((images, len(scale), height, width), dtype=torch.float32, memory_format=LAST)
    program = _copies_program(library, x.shape, len(scale), torch.get_num_threads())
    program.run(x.data_ptr(), y.data_ptr(), scale.data_ptr(), offset.data_ptr())
    return y


@functools.lru_cache(1024)
def _copies_program(library: Library, shape: torch.Size, out: int, threads: int) -> Program:
    recorder = Recorder()
    recorder.add(*_copies_step(shape, out, threads), (Given(0), Given(1), Given(2), Given(3)))
    return recorder.finish(library, threads, 4)
