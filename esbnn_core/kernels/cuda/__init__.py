"""CUDA operators: the contract of esbnn_core.kernels through kernels of our own (conv.cu, pack.cu).

Each function returns None where the kernels do not serve (another dtype, an old device, no compiler) and `naive` has
to. One launch a convolution on packed bits, two where it packs its input itself. Nothing waits for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.errors import InputError
from esbnn_core.kernels.checks import words_of
from esbnn_core.kernels.cpu.library import Status
from esbnn_core.kernels.cuda.lanes import fits, padded, rows_of
from esbnn_core.kernels.cuda.lanes import lanes_of as lay_out
from esbnn_core.kernels.cuda.launch import TYPES, Conv, Pack, launch_conv, launch_pack
from esbnn_core.kernels.cuda.library import Gpu, choose, path_of

__all__ = ["Status", "binary_conv2d", "choose", "lanes_of", "pack_sign", "path_of"]

LIMIT = 2**31
"""Pixels of an input or an output that the kernels count; values may be more."""


def _serving(x: Tensor, *parameters: Tensor | None) -> Gpu | None:
    """The device, if the kernels serve it and all tensors lie on it, the parameters in float32."""
    for tensor in parameters:
        if tensor is not None and (tensor.device != x.device or tensor.dtype != torch.float32):
            return None
    return choose(x.device.index)[0] if x.device.type == "cuda" else None


def _check_pixels(name: str, pixels: int) -> None:
    if pixels >= LIMIT:
        raise InputError(
            f"{name} has {pixels} pixels over all images, fewer than {LIMIT} were expected by the CUDA kernels: split "
            f"the batch"
        )


def lanes_of(weight: Tensor, groups: int) -> Tensor | None:
    """The weight (O, KH, KW, words) or (O, words) as the kernels walk it, int32 (rows, 8), or None."""
    return None if _serving(weight) is None else lay_out(weight, groups)


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
    shift: Tensor | None,
    out_dtype: torch.dtype | None,
    out_size: tuple[int, int],
) -> tuple[Tensor, Tensor] | None:
    """As esbnn_core.kernels.binary_conv2d with checked arguments, or None; `lanes` spares laying the weight out.

    x may be floating (N, C, H, W): it is packed first.
    """
    gpu = _serving(x, scale, bias, prelu, rprelu, sign_shift, shift)
    y_dtype = torch.int32 if scale is None else out_dtype or torch.float32
    known = residual is None or (residual.dtype in TYPES and residual.device == x.device)
    if gpu is None or weight.device != x.device or not known or (scale is not None and y_dtype not in TYPES):
        return None
    # a mask of taps is 32 bits wide, and a launch has so many blocks across
    if max(weight.shape[1], weight.shape[2]) > 32 or groups * padded(weight.shape[0] // groups) > 32 * 65535:
        return None
    size = x.shape[2:] if x.is_floating_point() else x.shape[1:3]
    _check_pixels("x", x.shape[0] * size.numel())
    _check_pixels("y", x.shape[0] * out_size[0] * out_size[1])
    if x.is_floating_point():
        packed = pack_sign(x, shift, groups, 1)
        if packed is None:
            return None
        x = packed
    if not fits(lanes, weight, groups):
        lanes = lay_out(weight, groups)
    assert lanes is not None
    out = copies * weight.shape[0]
    if residual is not None and not residual.is_contiguous(memory_format=torch.channels_last):
        residual = residual.contiguous(memory_format=torch.channels_last)
    y = torch.empty((x.shape[0], *out_size, out), dtype=y_dtype, device=x.device)
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
        kernel=(weight.shape[1], weight.shape[2]),
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        pad_value=pad_value,
        groups=groups,
        words=weight.shape[3],
        own=weight.shape[0] // groups,
        own_pad=padded(weight.shape[0] // groups),
        per_tap=channels // groups,
        copies=copies,
        sign_groups=sign_groups,
    )
    return y.permute(0, 3, 1, 2), launch_conv(gpu, conv)
