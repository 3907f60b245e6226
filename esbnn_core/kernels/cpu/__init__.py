"""Native CPU operators: the contract of esbnn_core.kernels with float32 arithmetic, through a C library (library.py).

Activations, residuals and outputs may be float32, bfloat16 or float16; scales, shifts and slopes are float32. Each
function returns None where the library does not serve (another dtype, or no library) and the reference has to.
"""

import functools
import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from esbnn_core.kernels.call import ConvCall, Epilogue
from esbnn_core.kernels.checks import words_of
from esbnn_core.kernels.cpu.library import Library, choose
from esbnn_core.kernels.cpu.narrow import mention

__all__ = ["Plan", "binary_conv2d", "choose", "find_plan", "lanes_of", "pack_sign", "run"]

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""How the library numbers the dtypes of activations, residuals and outputs (conv.h)."""

SHAPE, POINTERS = struct.Struct("29q"), struct.Struct("12Q")
"""The two arguments of esbnn_conv: whole numbers and addresses, in the order of the enums in interface.h."""


def _plain(*tensors: Tensor | None) -> bool:
    """Whether all tensors are on the CPU and float32 or int32, as parameters have to be."""
    return all(t is None or (t.is_cpu and t.dtype in (torch.float32, torch.int32)) for t in tensors)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _steps(x: Tensor) -> tuple[int, int, int] | None:
    """Steps in values from image to image, pixel to pixel and channel to channel of (N, C, H, W).

    None for a layout that the library does not read: it needs evenly spaced pixels, and channels or pixels next to each
    other.
    """
    _, channels, height, width = x.shape
    image, channel, row, column = x.stride()
    pixel = column if width > 1 else row
    if height > 1 and width > 1 and row != width * column:
        return None
    if channel == 1 or channels == 1:
        return image, pixel, 1
    return (image, 1, channel) if pixel == 1 or height * width == 1 else None


def _with_steps(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """x (N, C, H, W), copied only if it has no steps, and its steps."""
    steps = _steps(x)
    if steps is None:
        x = x.contiguous()
        steps = (x.stride(0), 1, x.shape[2] * x.shape[3])
    return x, steps


def pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor | None:
    """As esbnn_core.kernels.pack_sign, or None."""
    if x.dtype not in KINDS or not x.is_cpu or not _plain(shift):
        return None
    library = choose()[0]
    if library is None:
        return None
    if channel_dim == -1 or x.dim() != 4:
        x = x.contiguous()
        channels, images, outer = x.shape[-1], 1, list(x.shape[:-1])
        pixels = x.numel() // channels if channels else 0
        steps = (0, channels, 1)
    else:
        x, steps = _with_steps(x)
        images, channels, height, width = x.shape
        pixels, outer = height * width, [images, height, width]
    bits = torch.empty([*outer, words_of(channels, groups)], dtype=torch.int32)
    if bits.numel():
        shift = None if shift is None else shift.contiguous()
        library.handle.esbnn_pack(
            library.path,
            x.data_ptr(),
            KINDS[x.dtype],
            _address(shift),
            images,
            pixels,
            channels,
            groups,
            *steps,
            bits.data_ptr(),
            torch.get_num_threads(),
        )
    return bits


def _library_for(*tensors: Tensor | None) -> Library | None:
    return choose()[0] if _plain(*tensors) else None


@functools.lru_cache(4096)  # asked at every call
def _lane_words(library: Library, shape: torch.Size, groups: int) -> int:
    """Length of the library's layout of a weight of this shape for its path, in int32 words."""
    filters, *taps, words = shape
    return int(library.handle.esbnn_lane_words(library.path, groups, filters, math.prod(taps), words))


def lanes_of(weight: Tensor, groups: int) -> Tensor | None:
    """The weight (O, KH, KW, words) or (O, words) in the library's order, int32 (n,), or None where none serves."""
    library = _library_for(weight)
    if library is None:
        return None
    weight = weight.contiguous()
    filters, *taps, words = weight.shape
    lanes = torch.empty(_lane_words(library, weight.shape, groups), dtype=torch.int32)
    pointers = (weight.data_ptr(), groups, filters, math.prod(taps), words, lanes.data_ptr())
    library.handle.esbnn_lanes(library.path, *pointers)
    return lanes


def binary_conv2d(call: ConvCall, out_size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """As esbnn_core.kernels.binary_conv2d with checked arguments, or None; out_size is (H', W')."""
    library = _library_of(call)
    if library is None:
        return None
    call = _readable(call, library)
    return run(plan_of(call, out_size, library), call)


class Plan(NamedTuple):
    """What follows from the looks of a call's tensors (shapes, strides, dtypes) and not from their values.

    Attributes:
        library: that runs it.
        sizes: the whole numbers of esbnn_conv.
        y: size, strides and dtype of y.
        bits: size of the bits, None where there are none.
        zeroed: whether the bits have to start as zeros.
    """

    library: Library
    sizes: bytes
    y: tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
    bits: tuple[int, ...] | None
    zeroed: bool


def find_plan(call: ConvCall, out_size: tuple[int, int]) -> Plan | None:
    """The plan of every call whose tensors look like this one's; None where the library does not read them as they are.

    It holds for the present number of threads and the library in use.
    """
    library = _library_of(call)
    if library is None or _readable(call, library) is not call:
        return None
    return plan_of(call, out_size, library)


def _library_of(call: ConvCall) -> Library | None:
    """The library, if it serves such tensors."""
    x, weight, _, (scale, bias, prelu, residual, rprelu, sign_shift, _, _), shift, _ = call
    if (
        not x.is_cpu
        or (x.dtype != torch.int32 and x.dtype not in KINDS)
        or (scale is not None and call.y_dtype not in KINDS)
        or (residual is not None and residual.dtype not in KINDS)
        or max(weight.shape[1:3]) > 64  # the masks of taps inside the image are 64 bits wide
    ):
        return None
    return _library_for(scale, bias, prelu, rprelu, sign_shift, shift)


def _readable(call: ConvCall, library: Library) -> ConvCall:
    """The call with copies of what the library does not read as it is; the very same call where it reads all."""
    x, weight, geometry, epilogue, shift, lanes = call
    if lanes is None or lanes.dim() != 1 or lanes.numel() != _lane_words(library, weight.shape, geometry.groups):
        lanes = lanes_of(weight, geometry.groups)  # none, or the layout of another device or path
    residual = epilogue.residual
    if residual is not None and not residual.is_contiguous(memory_format=torch.channels_last):
        residual = residual.contiguous(memory_format=torch.channels_last)
    x = x.contiguous() if x.dtype == torch.int32 else _with_steps(x)[0]
    # parameters may be narrow views with gaps
    scale, bias, prelu, _, rprelu, sign_shift, shift, lanes = (
        t if t is None else t.contiguous() for t in (*epilogue[:6], shift, lanes)
    )
    steps = (scale, bias, prelu, residual, rprelu, sign_shift)
    before = (call.x, *epilogue[:6], call.shift, call.lanes)
    if all(one is two for one, two in zip((x, *steps, shift, lanes), before, strict=True)):
        return call
    return ConvCall(x, weight, geometry, Epilogue(*steps, *epilogue[6:]), shift, lanes)


def plan_of(call: ConvCall, out_size: tuple[int, int], library: Library) -> Plan:
    """The plan of a call whose tensors the library reads."""
    x, weight, geometry, epilogue, _, _ = call
    channels, stride, padding, pad_value, dilation, groups, copies = geometry
    filters, kernel_h, kernel_w, words = weight.shape
    residual, sign_groups = epilogue.residual, epilogue.sign_groups
    real, (height, width), (out_h, out_w) = x.dtype != torch.int32, call.size, out_size
    images, out, y_dtype = x.shape[0], copies * filters, call.y_dtype
    bits, sign_words, zeroed = None, 0, False
    if sign_groups:
        sign_words = words_of(out, sign_groups) // sign_groups
        bits = (images, out_h, out_w, sign_groups * sign_words)
        # zeros where tail bits have to be 0, or where channels are set one by one because blocks of 16 do not fit
        zeroed = out // sign_groups % 32 != 0 or filters // groups % 16 != 0
    if y_dtype is not torch.float32 and epilogue.scale is not None:
        mention(y_dtype)
    sizes = SHAPE.pack(
        *(images, height, width, out_h, out_w, kernel_h, kernel_w, *stride, *padding, *dilation),
        *(groups, words, filters, channels // groups, pad_value == 0, copies, sign_groups, sign_words),
        *(real, KINDS.get(x.dtype, 0), *(_with_steps(x)[1] if real else (0, 0, 0))),
        *(0 if residual is None else KINDS[residual.dtype], KINDS.get(y_dtype, 0), torch.get_num_threads()),
    )
    y = ((images, out, out_h, out_w), (out_h * out_w * out, 1, out_w * out, out), y_dtype)
    return Plan(library, sizes, y, bits, zeroed)


def run(plan: Plan, call: ConvCall) -> tuple[Tensor, Tensor]:
    """y and bits of a call that looks like the plan's."""
    x, _, _, (scale, bias, prelu, residual, rprelu, sign_shift, _, _), shift, lanes = call
    library, sizes, (size, strides, dtype), bits_size, zeroed = plan
    y = torch.empty_strided(size, strides, dtype=dtype)
    make = torch.zeros if zeroed else torch.empty
    bits = make(0 if bits_size is None else bits_size, dtype=torch.int32)
    if y.numel() == 0:
        return y, bits
    ends = (0, y.data_ptr()) if scale is None else (y.data_ptr(), 0)
    pointers = POINTERS.pack(
        x.data_ptr(),
        *[0 if t is None else t.data_ptr() for t in (shift, lanes, scale, bias, prelu, residual, rprelu, sign_shift)],
        *(*ends, 0 if bits_size is None else bits.data_ptr()),
    )
    if library.handle.esbnn_conv(library.path, sizes, pointers):
        images, (height, width) = size[0], call.size
        raise MemoryError(f"no memory for the packed activations of {images} images of {height}x{width}")
    return y, bits
