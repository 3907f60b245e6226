"""What an operator refuses, by the argument's name, before any implementation sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def words_of(channels: int, groups: int = 1) -> int:
    """int32 words that `channels` values in `groups` groups take."""
    return groups * (-(-(channels // groups) // 32))


def check_real(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless the dtype is a floating one."""
    if not dtype.is_floating_point:
        raise TypeError(f"{name} has dtype {dtype}, a floating one was expected")


def check_pack(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> None:
    """pack_sign's arguments."""
    check_real("x", x.dtype)
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim={channel_dim} was given, 1 or -1 was expected")
    if channel_dim == 1 and x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions, (N, C, H, W) was expected")
    channels = x.shape[channel_dim]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups={groups} does not divide {channels} channels")
    _check_shift(shift, channels)


def _check_shift(shift: Tensor | None, channels: int) -> None:
    if shift is not None:
        check_real("shift", shift.dtype)
    if shift is not None and shift.shape != (channels,):
        raise ValueError(f"shift has shape {tuple(shift.shape)}, ({channels},) was expected")


def _check_bits(x: Tensor, channels: int, groups: int) -> None:
    if x.dtype != torch.int32:
        raise TypeError(f"x has dtype {x.dtype}, packed bits in torch.int32 were expected: pack_sign makes them")
    words = words_of(channels, groups)
    if x.shape[-1] != words:
        raise ValueError(f"x has {x.shape[-1]} words, {words} were expected for {channels} channels in {groups} groups")


def _check_weight(x: Tensor, weight: Tensor, channels: int, groups: int, copies: int = 1) -> None:
    if weight.dtype != torch.int32:
        raise TypeError(
            f"weight has dtype {weight.dtype}, packed bits in torch.int32 were expected: pack_sign makes them"
        )
    if x.device != weight.device:
        raise ValueError(f"x lies on {x.device} and weight on {weight.device}: move one")
    if copies < 1:
        raise ValueError(f"copies={copies} was given, at least 1 was expected")
    if groups < 1 or channels % groups or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide {channels} channels and {weight.shape[0]} filters")
    words = words_of(channels, groups)
    if weight.shape[-1] != words // groups:
        raise ValueError(
            f"weight has {weight.shape[-1]} words, {words // groups} were expected for a group of {channels // groups}"
        )


def _check_affine(scale: Tensor | None, bias: Tensor | None, out: int) -> None:
    if (scale is None) != (bias is None):
        raise ValueError("scale and bias go together: give both or neither")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is None:
            continue
        check_real(name, tensor.dtype)
        if tensor.shape != (out,):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, ({out},) was expected")


def _check_epilogue(
    y_shape: Sequence[int],
    scale: Tensor | None,
    prelu: Tensor | None,
    residual: Tensor | None,
    rprelu: Tensor | None,
    sign_shift: Tensor | None,
    sign_groups: int,
    out_dtype: torch.dtype | None,
) -> None:
    """What comes behind the affine; y_shape is (N, copies*O, H', W')."""
    out = y_shape[1]
    for name, tensor, shape in (
        ("prelu", prelu, (out,)),
        ("residual", residual, y_shape),
        ("rprelu", rprelu, (3, out)),
        ("sign_shift", sign_shift, (out,)),
    ):
        if tensor is None:
            continue
        if scale is None:
            raise ValueError(f"{name} was given without scale and bias: the bare sums take no step")
        if name == "residual":
            check_real(name, tensor.dtype)
        elif tensor.dtype != scale.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, scale's {scale.dtype} expected")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {tuple(shape)} was expected")
    if out_dtype is not None:
        if scale is None:
            raise ValueError("out_dtype was given without scale and bias: the bare sums are int32")
        check_real("out_dtype", out_dtype)
    if sign_groups != 0 and (scale is None or sign_groups < 0 or out % sign_groups):
        raise ValueError(
            f"sign_groups={sign_groups} was given, 0 or, with scale and bias, a divisor of {out} was expected"
        )


def check_conv(
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
    shift: Tensor | None,
    out_dtype: torch.dtype | None,
) -> tuple[int, int]:
    """binary_conv2d's arguments; returns (H', W')."""
    real = x.is_floating_point()
    if x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions, (N, H, W, words) or floating (N, C, H, W) was expected")
    if weight.dim() != 4:
        raise ValueError(f"weight has {weight.dim()} dimensions, (O, KH, KW, words) was expected")
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name}={list(pair)} was given, two whole numbers of at least {least} were expected")
    if pad_value not in (0, -1):
        raise ValueError(f"pad_value={pad_value} was given, 0 or -1 was expected")
    _check_weight(x, weight, channels, groups, copies)
    if real:
        if x.shape[1] != channels:
            raise ValueError(f"x has {x.shape[1]} channels, channels={channels} was given")
        _check_shift(shift, channels)
    else:
        _check_bits(x, channels, groups)
        if shift is not None:
            raise ValueError("shift was given with packed bits: it is added before the sign, give the floating x")
    _check_affine(scale, bias, copies * weight.shape[0])
    height, width = (x.shape[2], x.shape[3]) if real else (x.shape[1], x.shape[2])
    out_h, out_w = conv_output_size((height, width), weight, stride, padding, dilation)
    if out_h < 1 or out_w < 1:
        raise ValueError(f"x is {height}x{width}, smaller than the kernel {weight.shape[1]}x{weight.shape[2]} reaches")
    y_shape = (x.shape[0], copies * weight.shape[0], out_h, out_w)
    _check_epilogue(y_shape, scale, prelu, residual, rprelu, sign_shift, sign_groups, out_dtype)
    return out_h, out_w


def check_linear(
    x: Tensor, weight: Tensor, features: int, groups: int, copies: int, scale: Tensor | None, bias: Tensor | None
) -> None:
    """binary_linear's arguments."""
    if weight.dim() != 2:
        raise ValueError(f"weight has {weight.dim()} dimensions, (O, words) was expected")
    _check_weight(x, weight, features, groups, copies)
    _check_bits(x, features, groups)
    _check_affine(scale, bias, copies * weight.shape[0])


def conv_output_size(
    size: tuple[int, int], weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """(H', W') by the rule of torch.nn.Conv2d; size is (H, W), weight (O, KH, KW, words)."""
    height, width = size
    _, kernel_h, kernel_w, _ = weight.shape
    return (
        (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1,
        (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1,
    )
