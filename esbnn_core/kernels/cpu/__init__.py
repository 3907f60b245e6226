"""Native CPU operators: the contract of esbnn_core.kernels in float32, through a C library (cpu/library.py).

Each function returns None where the library does not serve (another dtype, or none there) and `naive` has to.
"""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.kernels.checks import words_of
from esbnn_core.kernels.cpu.library import Library, Status, choose

__all__ = ["Status", "binary_conv2d", "binary_linear", "choose", "lanes_of", "pack_sign"]


def _serving(*tensors: Tensor | None) -> Library | None:
    """The library, if all tensors lie on the CPU and the floating ones are float32."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            return None
    return choose()[0]


SHAPE, POINTERS = struct.Struct("22q"), struct.Struct("11Q")
"""The two arguments of esbnn_conv: whole numbers and addresses, in the order of the enums in driver.cpp."""


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _channels_last(tensor: Tensor) -> bool:
    """Whether (N, C, H, W) has its channels innermost and its pixels one behind the other."""
    _, channels, _, width = tensor.shape
    return tensor.stride(1) == 1 and tensor.stride(3) == channels and tensor.stride(2) == channels * width


def pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor | None:
    """As esbnn_core.kernels.pack_sign, or None."""
    library = _serving(x, shift)
    if library is None:
        return None
    if channel_dim == -1 or x.dim() != 4:
        x = x.contiguous()
        channels, images, outer = x.shape[-1], 1, list(x.shape[:-1])
        pixels = x.numel() // channels if channels else 0
        steps = (0, channels, 1)
    else:
        images, channels, height, width = x.shape
        if not _channels_last(x):
            x = x.contiguous()
        pixels, outer = height * width, [images, height, width]
        steps = (x.stride(0), channels, 1) if _channels_last(x) else (x.stride(0), 1, pixels)
    bits = torch.empty([*outer, words_of(channels, groups)], dtype=torch.int32)
    if bits.numel():
        shift = None if shift is None else shift.contiguous()
        library.handle.esbnn_pack(
            library.path,
            x.data_ptr(),
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


def lanes_of(weight: Tensor, groups: int) -> Tensor | None:
    """The weight (O, KH, KW, words) or (O, words) as the library walks it, int32 (n,), or None where none serves."""
    library = _serving(weight)
    if library is None:
        return None
    weight = weight.contiguous()
    sizes = (groups, weight.shape[0], weight[0, ..., 0].numel(), weight.shape[-1])
    lanes = torch.empty(library.handle.esbnn_lane_words(*sizes), dtype=torch.int32)
    library.handle.esbnn_lanes(weight.data_ptr(), *sizes, lanes.data_ptr())
    return lanes


def binary_conv2d(
    x: Tensor,
    weight: Tensor,
    lanes: Tensor | None,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    pad_value: int,
    dilation: Sequence[int],
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
    prelu: Tensor | None,
    residual: Tensor | None,
    rprelu: Tensor | None,
    sign_shift: Tensor | None,
    sign_groups: int,
    out_size: tuple[int, int],
) -> tuple[Tensor, Tensor] | None:
    """As esbnn_core.kernels.binary_conv2d with checked arguments, or None; `lanes` spares laying the weight out."""
    library = _serving(x, scale, residual)
    # the masks of taps inside the image are 64 bits wide
    if library is None or max(weight.shape[1], weight.shape[2]) > 64:
        return None
    images, height, width, _ = x.shape
    filters, kernel_h, kernel_w, words = weight.shape
    out = copies * filters
    if lanes is None:
        lanes = lanes_of(weight, groups)
    if residual is not None and not _channels_last(residual):
        residual = residual.contiguous(memory_format=torch.channels_last)
    sums = scale is None
    y = torch.empty((images, *out_size, out), dtype=torch.int32 if sums else torch.float32)
    sign_words = words_of(out, sign_groups) // sign_groups if sign_groups else 0
    # zeros: tail bits are 0, and channels that share a word are set one by one
    bits = torch.zeros((images, *out_size, sign_groups * sign_words) if sign_groups else 0, dtype=torch.int32)
    if y.numel() == 0:
        return y.permute(0, 3, 1, 2), bits
    # the contiguous ones must outlive the call: parameters may be narrow views with gaps
    kept = [t if t is None else t.contiguous() for t in (x, lanes, scale, bias, prelu, rprelu, sign_shift)]
    shape = SHAPE.pack(
        *(images, height, width, *out_size, kernel_h, kernel_w, *stride, *padding, *dilation),
        *(groups, words, filters, channels // groups, pad_value == 0, copies, sign_groups, sign_words),
        torch.get_num_threads(),
    )
    packed, lanes_at, scale_at, bias_at, prelu_at, rprelu_at, shift_at = map(_address, kept)
    ends = (0, y.data_ptr()) if sums else (y.data_ptr(), 0)
    pointers = POINTERS.pack(
        *(packed, lanes_at, scale_at, bias_at, prelu_at, _address(residual), rprelu_at, shift_at),
        *(*ends, bits.data_ptr() if sign_groups else 0),
    )
    if library.handle.esbnn_conv(library.path, shape, pointers):
        raise MemoryError(f"no memory for the packed activations of {images} images of {height}x{width}")
    return y.permute(0, 3, 1, 2), bits


def binary_linear(
    x: Tensor,
    weight: Tensor,
    lanes: Tensor | None,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor | None:
    """As esbnn_core.kernels.binary_linear with checked arguments, or None: a convolution with one long row."""
    rows = x.reshape(1, 1, -1, x.shape[-1])
    one, zero = (1, 1), (0, 0)
    none = (None, None, None, None, 0)
    size = (1, rows.shape[2])
    done = binary_conv2d(
        rows, weight[:, None, None], lanes, features, one, zero, -1, one, groups, copies, scale, bias, *none, size
    )
    return None if done is None else done[0].permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
