"""Packed operators in the torch.library namespace `esbnn`, and the contract every implementation keeps.

The contract
------------
*Bits.* One value of +-1 is one bit: 1 for +1, 0 for -1. sign(0) = +1, sign(NaN) = -1.
*Words.* int32, bit i of a word is value i of its run of 32 (the sign bit is value 31). The channels of each group are
  packed apart: C channels in g groups take g * ceil(C/g/32) words. Tail bits, past a group's last channel, are 0 in
  activations and in weights, so that xor never counts them.
*Activations.* (N, H, W, words) int32, contiguous: channels innermost. Features of a linear layer: (..., words). A
  convolution also takes real ones, (N, C, H, W) in any layout, and packs sign(x + shift) itself.
*Weights.* (O, KH, KW, words of one group) int32, contiguous; filter o belongs to group o // (O/g). Linear: (O, words).
*Sum.* The exact int32 sum of +-1 products over the taps. A tap outside the image counts 0 for pad_value = 0 (it is
  skipped: its border class has fewer terms) and -w for pad_value = -1 (the ring holds 0-bits). With n valid values and
  m differing bits a sum is n - 2m.
*Epilogue*, in this order, every step rounded on its own in the dtype of `scale` (no fused multiply-add), because a sign
  follows and a different rounding turns it at ties:
  tile (channel j of copies*O takes sum j mod O) -> * scale + bias -> [PReLU, slope per channel] -> [+ residual, widened
  from its own dtype] -> [RPReLU: + shift_in, PReLU, + shift_out] -> y, rounded once to out_dtype -> [signs of the
  rounded y + sign_shift, packed in sign_groups groups: the bits that the next layer would make of y].
  Without `scale` and `bias` the tiled int32 sums themselves are returned and no later step may be asked for.
*Output.* y (N, copies*O, H', W') in channels_last memory; bits (N, H', W', words), or an empty (0,) int32 tensor when
  sign_groups = 0.

`naive` (plain torch) is the readable truth and serves every device; where `cpu` or `cuda` has native code for the
tensors at hand the operator calls that, which is tested against `naive` in every bit. The operators have no derivative.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.kernels import cpu, cuda
from esbnn_core.kernels import reference as naive
from esbnn_core.kernels.checks import check_conv, check_linear, check_pack, words_of
from esbnn_core.kernels.linear import long_row

__all__ = ["binary_conv2d", "binary_linear", "cpu", "cuda", "lanes_of", "naive", "pack_sign", "words_of"]


def lanes_of(weight: Tensor, groups: int) -> Tensor | None:
    """The packed weight in the order in which its device's implementation walks it, int32; None where there is none."""
    return cuda.lanes_of(weight, groups) if weight.is_cuda else cpu.lanes_of(weight, groups)


def pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    """Bits of sign(x + shift).

    Args:
        x: floating; (N, C, H, W) with channel_dim 1, or (..., C) with channel_dim -1. shift: (C,) or None.
        groups: of the operator that reads the bits.

    Returns:
        (N, H, W, words) or (..., words) int32.
    """
    bits: Tensor = torch.ops.esbnn.pack_sign.default(x, shift, groups, channel_dim)
    return bits


def _pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    check_pack(x, shift, groups, channel_dim)
    pack = cuda.pack_sign if x.is_cuda else cpu.pack_sign
    bits = pack(x, shift, groups, channel_dim)
    return naive.pack_sign(x, shift, groups, channel_dim) if bits is None else bits


def _pack_sign_fake(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    check_pack(x, shift, groups, channel_dim)
    words = words_of(x.shape[channel_dim], groups)
    kept = [size for dim, size in enumerate(x.shape) if dim != channel_dim % x.dim()]
    return x.new_empty([*kept, words], dtype=torch.int32)


def binary_conv2d(
    x: Tensor,
    weight: Tensor,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    pad_value: int,
    dilation: Sequence[int],
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
    prelu: Tensor | None = None,
    residual: Tensor | None = None,
    rprelu: Tensor | None = None,
    sign_shift: Tensor | None = None,
    sign_groups: int = 0,
    lanes: Tensor | None = None,
    shift: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary convolution with the fused epilogue (the module's docstring is the contract).

    Args:
        x: (N, H, W, words) int32 or (N, C, H, W) floating. weight: (O, KH, KW, words of a group) int32. channels: C,
            over all groups.
        stride, padding, dilation: two ints each. pad_value: 0 or -1. copies: tiles of the O maps.
        scale, bias, prelu, sign_shift: (copies*O,) floating or None. rprelu: (3, copies*O): shift_in, slope, shift_out.
        residual: (N, copies*O, H', W') floating, or None. sign_groups: 0 for no packed signs.
        lanes: lanes_of(weight, groups), which a native implementation would have to make at every call; or None.
        shift: (C,) of a floating x, or None. out_dtype: of y, floating; None for scale's.

    Returns:
        y and bits. Raises TypeError or ValueError that names the argument.
    """
    y: Tensor
    bits: Tensor
    y, bits = torch.ops.esbnn.binary_conv2d.default(
        x, weight, channels, stride, padding, pad_value, dilation, groups, copies, scale, bias, prelu, residual,
        rprelu, sign_shift, sign_groups, lanes, shift, out_dtype,
    )  # fmt: skip
    return y, bits


_known: dict[object, tuple[int, int]] = {}
"""Output sizes of calls whose arguments were found right: the checks are a third of a small layer's time."""


def _binary_conv2d(
    x: Tensor,
    weight: Tensor,
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
    lanes: Tensor | None = None,
    shift: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    geometry = (channels, stride, padding, pad_value, dilation, groups, copies)
    steps = (scale, bias, prelu, residual, rprelu, sign_shift)
    described = [t if t is None else (t.shape, t.dtype, t.device) for t in (x, weight, shift, *steps)]
    key = (*described, channels, *stride, *padding, *dilation, pad_value, groups, copies, sign_groups, out_dtype)
    size = _known.get(key)
    if size is None:
        size = check_conv(x, weight, *geometry, *steps, sign_groups, shift, out_dtype)
        if len(_known) >= 4096:
            _known.clear()
        _known[key] = size
    convolve = cuda.binary_conv2d if x.is_cuda else cpu.binary_conv2d
    done = convolve(x, weight, lanes, *geometry, *steps, sign_groups, shift, out_dtype, size)
    if done is not None:
        return done
    if x.is_floating_point():
        x = naive.pack_sign(x, shift, groups, 1)
    total = naive.conv2d_sum(x, weight, channels, stride, padding, pad_value, dilation, groups)
    y = naive.epilogue(total, copies, scale, bias, prelu, residual, rprelu, out_dtype)
    if sign_groups == 0:
        return y, x.new_empty(0)
    return y, naive.pack_sign(y, sign_shift, sign_groups, 1)


def _binary_conv2d_fake(
    x: Tensor,
    weight: Tensor,
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
    lanes: Tensor | None = None,
    shift: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    geometry = (channels, stride, padding, pad_value, dilation, groups, copies)
    steps = (scale, bias, prelu, residual, rprelu, sign_shift)
    height, width = check_conv(x, weight, *geometry, *steps, sign_groups, shift, out_dtype)
    out = copies * weight.shape[0]
    dtype = torch.int32 if scale is None else out_dtype or scale.dtype
    y = x.new_empty([x.shape[0], height, width, out], dtype=dtype).permute(0, 3, 1, 2)
    if sign_groups == 0:
        return y, x.new_empty(0, dtype=torch.int32)
    return y, x.new_empty([x.shape[0], height, width, words_of(out, sign_groups)], dtype=torch.int32)


def binary_linear(
    x: Tensor,
    weight: Tensor,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
    lanes: Tensor | None = None,
) -> Tensor:
    """Binary matrix product of packed bits: (..., words) x (O, words of a group) -> (..., copies*O).

    Args: as binary_conv2d; features: I over all groups. Without scale and bias the int32 sums are returned.
    """
    y: Tensor = torch.ops.esbnn.binary_linear.default(x, weight, features, groups, copies, scale, bias, lanes)
    return y


def _binary_linear(
    x: Tensor,
    weight: Tensor,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
    lanes: Tensor | None = None,
) -> Tensor:
    check_linear(x, weight, features, groups, copies, scale, bias)
    convolve = cuda.binary_conv2d if x.is_cuda else cpu.binary_conv2d
    done = long_row(convolve, x, weight, lanes, features, groups, copies, scale, bias)
    if done is not None:
        return done
    total = naive.linear_sum(x, weight, features, groups)
    return naive.affine(total.repeat(*[1] * (total.dim() - 1), copies), scale, bias, -1)


def _binary_linear_fake(
    x: Tensor,
    weight: Tensor,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
    lanes: Tensor | None = None,
) -> Tensor:
    check_linear(x, weight, features, groups, copies, scale, bias)
    dtype = torch.int32 if scale is None else scale.dtype
    return x.new_empty([*x.shape[:-1], copies * weight.shape[0]], dtype=dtype)


# defined with Library in place of custom_op, whose own bookkeeping takes as long as a small layer's packing
_LIBRARY = torch.library.Library("esbnn", "DEF")
for _name, _serve, _fake in (
    ("pack_sign", _pack_sign, _pack_sign_fake),
    ("binary_conv2d", _binary_conv2d, _binary_conv2d_fake),
    ("binary_linear", _binary_linear, _binary_linear_fake),
):
    _LIBRARY.define(_name + torch.library.infer_schema(_serve, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"esbnn::{_name}", _fake, lib=_LIBRARY)
