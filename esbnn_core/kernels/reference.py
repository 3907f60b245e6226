"""The reference: packed binary operators in plain torch, readable and on any device (contract: esbnn_core.kernels)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.kernels.call import ConvCall, Epilogue
from esbnn_core.kernels.checks import words_of

CHUNK = 1 << 20
"""int32 values of one intermediate: the batch is walked in pieces of about this size, to stay in cache."""


def pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    """Bits of sign(x + shift), channels last: (N, H, W, words) or (..., words) int32."""
    x = x.movedim(channel_dim, -1)
    if shift is not None:
        x = x + shift
    return pack_bits((x >= 0).unflatten(-1, (groups, -1))).flatten(-2)


def pack_bits(bits: Tensor) -> Tensor:
    """(..., C) bool -> (..., ceil(C/32)) int32, bit i of a word = value i, tail bits 0."""
    words = words_of(bits.shape[-1])
    bits = F.pad(bits, (0, 32 * words - bits.shape[-1])).unflatten(-1, (words, 32))
    # 2^31 is int32's lowest number: the places are disjoint, so a sum is an or
    places = torch.ones(32, dtype=torch.int32, device=bits.device) << torch.arange(32, device=bits.device).int()
    return (bits * places).sum(-1, dtype=torch.int32)


def unpack_bits(words: Tensor, channels: int) -> Tensor:
    """(..., W) int32 -> (..., channels) bool, the inverse of pack_bits."""
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device).int()) & 1
    return bits.flatten(-2)[..., :channels].bool()


def popcount_(v: Tensor) -> Tensor:
    """Number of 1-bits of every int32 word, in place (SWAR); >> repeats the sign bit, the masks cut it off."""
    v -= (v >> 1) & 0x55555555
    v = ((v >> 2) & 0x33333333).add_(v & 0x33333333)
    v = v.add_(v >> 4).bitwise_and_(0x0F0F0F0F)
    v *= 0x01010101  # the four byte counts add up in the top byte
    return v.bitwise_right_shift_(24)


def binary_conv2d(call: ConvCall) -> tuple[Tensor, Tensor]:
    """As esbnn_core.kernels.binary_conv2d with checked arguments."""
    x, _, geometry, epilogue, shift, _ = call
    if x.is_floating_point():
        call = call._replace(x=pack_sign(x, shift, geometry.groups, 1))
    y = finish(conv2d_sum(call), geometry.copies, epilogue)
    if epilogue.sign_groups == 0:
        return y, x.new_empty(0, dtype=torch.int32)
    return y, pack_sign(y, epilogue.sign_shift, epilogue.sign_groups, 1)


def conv2d_sum(call: ConvCall) -> Tensor:
    """Exact sums (N, H', W', O) int32 of a binary convolution over packed bits, without the epilogue."""
    channels, stride, padding, pad_value, dilation, groups, _ = call.geometry
    x, weight = call.x, call.weight
    height, width = call.size
    filters, kernel_h, kernel_w, words = weight.shape
    out_h, out_w = call.output_size()
    per_tap = channels // groups
    # 0-words around the image: bits of -1, which is right for pad_value -1; for 0 such taps are left out below
    ring = (0, 0, padding[1], padding[1], padding[0], padding[0])
    x = F.pad(x, ring).unflatten(-1, (groups, words))
    w = weight.unflatten(0, (groups, -1))  # (g, O/g, KH, KW, words)
    rows = torch.arange(out_h, device=x.device) * stride[0]
    columns = torch.arange(out_w, device=x.device) * stride[1]
    step = max(1, CHUNK // (out_h * out_w * filters))
    sums = []
    for part in x.split(step):
        total = x.new_zeros(part.shape[0], out_h, out_w, groups, filters // groups)
        for i in range(kernel_h):
            for j in range(kernel_w):
                y0, x0 = i * dilation[0], j * dilation[1]
                tap = part[:, y0 : y0 + out_h * stride[0] : stride[0], x0 : x0 + out_w * stride[1] : stride[1]]
                tap = tap[:, :out_h, :out_w]
                for k in range(words):
                    differing = popcount_(tap[..., k, None] ^ w[:, :, i, j, k])
                    total.sub_(differing, alpha=2)
                if pad_value == -1:
                    total += per_tap
                    continue
                in_rows = (rows + y0 >= padding[0]) & (rows + y0 < padding[0] + height)
                in_columns = (columns + x0 >= padding[1]) & (columns + x0 < padding[1] + width)
                inside = (in_rows[:, None] & in_columns).int()[:, :, None, None]
                # outside the image: undo -2m of the ring's 0-bits, whose m is the popcount of the weight itself
                ones = popcount_(w[:, :, i, j].clone()).sum(-1, dtype=torch.int32)
                total += inside * per_tap + (1 - inside) * (2 * ones)
        sums.append(total.flatten(-2))
    return torch.cat(sums) if sums else x.new_zeros(0, out_h, out_w, filters)


def finish(total: Tensor, copies: int, epilogue: Epilogue) -> Tensor:
    """From sums (N, H', W', O) to y (N, copies*O, H', W') in channels_last memory, in the contract's order."""
    y = total.repeat(1, 1, 1, copies).permute(0, 3, 1, 2)
    scale, bias, prelu, residual, rprelu, _, _, out_dtype = epilogue
    if scale is not None and bias is not None:
        # the product is rounded before the sum
        y = y.to(scale.dtype) * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    if prelu is not None:
        y = F.prelu(y, prelu)
    if residual is not None:
        y = y + residual.to(y.dtype)
    if rprelu is not None:
        shift_in, slope, shift_out = rprelu.unbind(0)
        y = F.prelu(y + shift_in.view(1, -1, 1, 1), slope) + shift_out.view(1, -1, 1, 1)
    if out_dtype is not None:
        y = y.to(out_dtype)
    # a residual in another layout may have given y that layout
    return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
