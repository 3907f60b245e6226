"""Real convolutions and max-pooling on the CPU: float32 maps with their channels last, through the C library.

Each function returns None where the library does not serve and torch has to. The maximum is torch's in every bit. A
convolution may fuse products with additions and adds in an order of its own: it is for callers that ask for that.
"""

import functools
import struct
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu.library import Library

SHAPE = struct.Struct("13q")
LANES, ROW = 16, 64


def real_lanes(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, C, KH, KW) and bias (O,) as the library reads them, with zeros up to a multiple of 16 filters.

    For every 64 filters their taps, (KH*KW*C, 64), one after the other; the last filters are fewer side by side.
    """
    missing = -len(weight) % LANES
    rows = F.pad(weight.permute(0, 2, 3, 1).flatten(1), (0, 0, 0, missing))
    return torch.cat([part.t().flatten() for part in rows.split(ROW)]), F.pad(bias, (0, missing))


class Window(NamedTuple):
    """What a kernel is laid over: height and width of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output, not positive where the kernel has no place."""
        (kh, kw), (sh, sw), (ph, pw) = self
        return (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1


class RealFilters(NamedTuple):
    """Weight and bias of real_lanes, and how many filters they are."""

    lanes: Tensor
    bias: Tensor
    number: int


def library_for(*tensors: Tensor) -> Library | None:
    """The library, if it serves tensors like these: float32 on the CPU."""
    for t in tensors:
        if t.dtype is not torch.float32 or not t.is_cpu:
            return None
    return cpu.choose()[0]


def real_conv2d(
    x: Tensor,
    filters: RealFilters,
    window: Window,
    pool: Window | None = None,
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor | None:
    """Convolution without groups and dilation: (N, C, H, W) -> (N, O, H', W') in channels_last.

    Args:
        x: in any layout, read in channels_last.
        filters: of C channels.
        window: of the convolution, padded with zeros.
        pool: a max-pooling of the output.
        affine: only with a pool: factor and offset (copies*O,) of as many copies of what it gives.
    """
    library = library_for(x, filters.lanes, filters.bias, *(affine or ()))
    if library is None or library.name == "portable" or x.dim() != 4:  # torch has faster code than plain C++
        return None
    copies = 1 if affine is None else len(affine[0]) // filters.number
    sizes = _conv_sizes(x.shape, window, pool, filters.number)
    if sizes is None:
        return None
    shape, pooled, out_size = sizes
    x = x.contiguous(memory_format=torch.channels_last)
    y = _empty(x.shape[0], copies * filters.number, out_size)
    pointers = (x.data_ptr(), filters.lanes.data_ptr(), filters.bias.data_ptr())
    threads = torch.get_num_threads()
    if pooled is None:
        failed = library.handle.esbnn_real_conv(library.path, shape, *pointers, y.data_ptr(), threads)
    else:
        scale, offset = (0, 0) if affine is None else (t.data_ptr() for t in affine)
        more = (*pointers, copies, scale, offset, y.data_ptr(), threads)
        failed = library.handle.esbnn_real_conv_pool(library.path, shape, pooled, *more)
    if failed:
        raise MemoryError(f"no memory for some rows of an image of {x.shape[2]}x{x.shape[3]}")
    return y


@functools.lru_cache(1024)  # asked at every call
def _conv_sizes(
    shape: torch.Size, window: Window, pool: Window | None, filters: int
) -> tuple[bytes, bytes | None, tuple[int, int]] | None:
    """The shapes of a convolution and its pooling as the library takes them, and the size of the output, or None."""
    images, channels, height, width = shape
    size = window.output(height, width)
    out_size = size if pool is None else pool.output(*size)
    if min(*size, *out_size, *shape, filters) < 1 or (pool is not None and not _fits(pool)):
        return None
    first = SHAPE.pack(images, height, width, channels, *size, *_flat(window), filters)
    if pool is None:
        return first, None, out_size
    return first, SHAPE.pack(images, *size, filters, *out_size, *_flat(pool), filters), out_size


def real_linear(x: Tensor, filters: RealFilters) -> Tensor | None:
    """A linear layer by the same kernel: rows (N, C) -> (N, O), contiguous."""
    library = library_for(x, filters.lanes, filters.bias)
    if library is None or library.name == "portable" or x.numel() == 0 or filters.number < 1:
        return None
    rows, channels = x.shape
    x = x.contiguous()
    y = torch.empty((rows, filters.number), dtype=torch.float32)
    shape = SHAPE.pack(1, rows, 1, channels, rows, 1, *(1, 1, 1, 1, 0, 0), filters.number)  # pixels of one column
    pointers = (x.data_ptr(), filters.lanes.data_ptr(), filters.bias.data_ptr(), y.data_ptr())
    if library.handle.esbnn_real_conv(library.path, shape, *pointers, torch.get_num_threads()):
        raise MemoryError(f"no memory for {rows} rows of a linear layer")
    return y


def max_pool2d(x: Tensor, window: Window) -> Tensor | None:
    """torch's max_pool2d without dilation and ceil_mode, every bit and NaN of it, in the memory format of x."""
    library = library_for(x)
    if library is None or x.dim() != 4 or not _fits(window):
        return None
    images, channels, height, width = x.shape
    size = window.output(height, width)
    if min(*size, x.numel()) < 1:
        return None
    last = x.contiguous(memory_format=torch.channels_last)
    y = _empty(images, channels, size)
    shape = SHAPE.pack(images, height, width, channels, *size, *_flat(window), channels)
    library.handle.esbnn_max_pool(library.path, shape, last.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y if last is x else y.contiguous()


class Norm(NamedTuple):
    """A BatchNorm outside training, of copies of a map: vectors (copies*C,), and eps.

    Attributes:
        weight: or None.
        bias: or None.
        mean: of the running statistics.
        variance: likewise.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float


def pool_before_norm(x: Tensor, window: Window, norm: Norm) -> Tensor | None:
    """What gives max_pool2d(norm(x)) in every bit if the norm is applied to it: (N, C, H, W) -> (N, copies*C, H', W').

    The largest values of each window, for channels that the norm turns around the smallest: a norm is monotonic, also
    as it is rounded. x has its channels last, and in no other layout; torch's norm then treats every pixel alike.
    None for other maps, and where a zero of the two might have different signs.
    """
    vectors = [t for t in norm[:4] if t is not None]
    library = library_for(x, *vectors)
    if library is None or x.dim() != 4 or not _fits(window) or x.shape[1] % LANES or x.numel() == 0:
        return None
    if x.is_contiguous():
        return None
    images, channels, height, width = x.shape
    size = window.output(height, width)
    plain = all(t.is_contiguous() for t in vectors) and x.is_contiguous(memory_format=torch.channels_last)
    if not plain or min(size) < 1 or size == (1, 1) or len(norm.mean) % channels:
        return None
    y = _empty(images, len(norm.mean), size)
    shape = SHAPE.pack(images, height, width, channels, *size, *_flat(window), channels)
    places = [0 if t is None else t.data_ptr() for t in norm[:4]]
    start = (library.path, shape, x.data_ptr(), len(norm.mean) // channels)
    same = library.handle.esbnn_pool_before_norm(*start, *places, norm.eps, y.data_ptr(), torch.get_num_threads())
    return y if same else None


def _fits(window: Window) -> bool:
    """Whether torch takes the padding of a pooling."""
    return all(2 * pad <= side for pad, side in zip(window.padding, window.kernel, strict=True))


def _flat(window: Window) -> tuple[int, ...]:
    return (*window.kernel, *window.stride, *window.padding)


def _empty(images: int, channels: int, size: tuple[int, int]) -> Tensor:
    height, width = size
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided((images, channels, height, width), strides, dtype=torch.float32)
