"""CUDA operators: the contract of esbnn_core.kernels through kernels of our own (conv.cu, pack.cu).

Each function returns None where the kernels do not serve (another dtype, an old device, no compiler) and the reference
has to. A convolution is one launch on packed bits, and two where it packs its input itself. Nothing waits for the
device.
"""

import math

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.kernels.call import ConvCall
from esbnn_core.kernels.checks import words_of
from esbnn_core.kernels.cuda.lanes import fits, make_lanes, padded, rows_of
from esbnn_core.kernels.cuda.launch import TYPES, Conv, Pack, launch_conv, launch_lanes, launch_pack
from esbnn_core.kernels.cuda.library import Gpu, choose, path_of

__all__ = ["binary_conv2d", "choose", "lanes_of", "pack_sign", "path_of"]

LIMIT = 2**31
"""Pixels of an input or an output that the kernels count; values may be more."""


def _serving(x: Tensor, *parameters: Tensor | None) -> Gpu | None:
    """The device, if the kernels serve it, all tensors are on it and the parameters are float32."""
    for tensor in parameters:
        if tensor is not None and (tensor.device != x.device or tensor.dtype != torch.float32):
            return None
    return choose(x.device.index)[0] if x.device.type == "cuda" else None


def _check_pixels(name: str, pixels: int) -> None:
    if pixels >= LIMIT:
        raise InputError(
            f"{name} must have fewer than {LIMIT} pixels over all images for the CUDA kernels, got {pixels}: split the "
            f"batch"
        )


def lanes_of(weight: Tensor, groups: int) -> Tensor | None:
    """The weight (O, KH, KW, words) or (O, words) in the kernels' order, int32 (rows, 8), or None."""
    gpu = _serving(weight)
    return None if gpu is None else _made_lanes(gpu, weight, groups)


def _made_lanes(gpu: Gpu, weight: Tensor, groups: int) -> Tensor:
    traced = torch.compiler.is_compiling() or type(weight) not in (Tensor, nn.Parameter)
    if traced or weight.dtype != torch.int32 or not weight.numel():
        return make_lanes(weight, groups)
    return launch_lanes(gpu, (weight[:, None, None] if weight.dim() == 2 else weight).contiguous(), groups)


def pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor | None:
    """As esbnn_core.kernels.pack_sign, or None."""
    gpu = _serving(x, shift)
    if gpu is None or x.dtype not in TYPES:
        return None
    if channel_dim == -1 or x.dim() != 4:
        outer = list(x.shape[:-1])
        x = x.reshape(1, -1, x.shape[-1]) if x.shape[-1] else x.new_empty(1, 0, 0)
    else:
        images, channels, height, width = x.shape
        outer = [images, height, width]
        step = x.stride(3)
        flat = height == 1 or x.stride(2) == width * step
        if not flat or not (step == 1 or x.stride(1) == 1):
            x = x.contiguous()
            step = 1
        # pixels in one line: (images, pixels, channels) over the same memory
        x = x.as_strided((images, height * width, channels), (x.stride(0), step, x.stride(1)))
    if 1 not in x.stride()[1:]:
        x = x.contiguous()
    bits = torch.empty([*outer, words_of(x.shape[2], groups)], dtype=torch.int32, device=x.device)
    _check_pixels("x", x.shape[0] * x.shape[1])
    if bits.numel():
        launch_pack(gpu, Pack(x, None if shift is None else shift.contiguous(), bits, groups))
    return bits


def binary_conv2d(call: ConvCall, out_size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """As esbnn_core.kernels.binary_conv2d with checked arguments, or None; out_size is (H', W').

    A floating x is packed first.
    """
    x, weight, geometry, epilogue, shift, lanes = call
    scale, bias, prelu, residual, rprelu, sign_shift, sign_groups, _ = epilogue
    groups, y_dtype = geometry.groups, call.y_dtype
    gpu = _serving(x, scale, bias, prelu, rprelu, sign_shift, shift)
    known = residual is None or (residual.dtype in TYPES and residual.device == x.device)
    if gpu is None or weight.device != x.device or not known or (scale is not None and y_dtype not in TYPES):
        return None
    # a mask of taps is 32 bits wide, and the number of blocks across is limited
    if max(weight.shape[1], weight.shape[2]) > 32 or groups * padded(weight.shape[0] // groups) > 32 * 65535:
        return None
    _check_pixels("x", x.shape[0] * math.prod(call.size))
    _check_pixels("y", x.shape[0] * math.prod(out_size))
    if x.is_floating_point():
        packed = pack_sign(x, shift, groups, 1)
        if packed is None:
            return None
        x = packed
    if not fits(lanes, weight, groups):
        lanes = _made_lanes(gpu, weight, groups)
    assert lanes is not None
    if residual is not None and not residual.is_contiguous(memory_format=torch.channels_last):
        residual = residual.contiguous(memory_format=torch.channels_last)
    y = torch.empty((x.shape[0], *out_size, call.out_channels), dtype=y_dtype, device=x.device)
    conv = Conv(
        x=x.contiguous(),
        panels=lanes,
        corners=lanes[rows_of(weight, groups)[0] :],
        scale=None if scale is None else scale.contiguous(),
        bias=None if bias is None else bias.contiguous(),
        prelu=None if prelu is None else prelu.contiguous(),
        rprelu=None if rprelu is None else rprelu.contiguous(),
        sign_shift=None if sign_shift is None or not sign_groups else sign_shift.contiguous(),
        residual=residual,
        y=y,
        geometry=geometry,
        kernel=(weight.shape[1], weight.shape[2]),
        words=weight.shape[3],
        filters=weight.shape[0] // groups,
        padded_filters=padded(weight.shape[0] // groups),
        sign_groups=sign_groups,
    )
    return y.permute(0, 3, 1, 2), launch_conv(gpu, conv)
