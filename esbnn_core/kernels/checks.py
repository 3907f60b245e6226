"""What an operator refuses, by the argument's name, before any implementation sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def words_of(channels: int, groups: int = 1) -> int:
    """int32 words that `channels` values in `groups` groups take."""
    return groups * (-(-(channels // groups) // 32))


def check_pack(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> None:
    """pack_sign's arguments."""
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, a floating one was expected")
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim={channel_dim} was given, 1 or -1 was expected")
    if channel_dim == 1 and x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions, (N, C, H, W) was expected")
    channels = x.shape[channel_dim]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups={groups} does not divide {channels} channels")
    if shift is not None and shift.shape != (channels,):
        raise ValueError(f"shift has shape {tuple(shift.shape)}, ({channels},) was expected")


def _check_words(x: Tensor, weight: Tensor, channels: int, groups: int, copies: int = 1) -> None:
    if x.dtype != torch.int32 or weight.dtype != torch.int32:
        name, tensor = ("weight", weight) if x.dtype == torch.int32 else ("x", x)
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, packed bits in torch.int32 were expected: pack_sign makes them"
        )
    if x.device != weight.device:
        raise ValueError(f"x lies on {x.device} and weight on {weight.device}: move one")
    if copies < 1:
        raise ValueError(f"copies={copies} was given, at least 1 was expected")
    if groups < 1 or channels % groups or weight.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide {channels} channels and {weight.shape[0]} filters")
    words = words_of(channels, groups)
    if x.shape[-1] != words:
        raise ValueError(f"x has {x.shape[-1]} words, {words} were expected for {channels} channels in {groups} groups")
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
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}, a floating one was expected")
        if tensor.shape != (out,):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, ({out},) was expected")


def check_epilogue(
    y_shape: Sequence[int],
    scale: Tensor | None,
    prelu: Tensor | None,
    residual: Tensor | None,
    rprelu: Tensor | None,
    sign_shift: Tensor | None,
    sign_groups: int,
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
        if tensor.dtype != scale.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, scale's {scale.dtype} expected")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {tuple(shape)} was expected")
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
) -> None:
    """binary_conv2d's arguments."""
    if x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions, (N, H, W, words) was expected")
    if weight.dim() != 4:
        raise ValueError(f"weight has {weight.dim()} dimensions, (O, KH, KW, words) was expected")
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name}={list(pair)} was given, two whole numbers of at least {least} were expected")
    if pad_value not in (0, -1):
        raise ValueError(f"pad_value={pad_value} was given, 0 or -1 was expected")
    _check_words(x, weight, channels, groups, copies)
    _check_affine(scale, bias, copies * weight.shape[0])
    height, width = conv_output_size(x, weight, stride, padding, dilation)
    if height < 1 or width < 1:
        raise ValueError(
            f"x is {x.shape[1]}x{x.shape[2]}, smaller than the kernel {weight.shape[1]}x{weight.shape[2]} reaches"
        )


def check_linear(
    x: Tensor, weight: Tensor, features: int, groups: int, copies: int, scale: Tensor | None, bias: Tensor | None
) -> None:
    """binary_linear's arguments."""
    if weight.dim() != 2:
        raise ValueError(f"weight has {weight.dim()} dimensions, (O, words) was expected")
    _check_words(x, weight, features, groups, copies)
    _check_affine(scale, bias, copies * weight.shape[0])


def conv_output_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """(H', W') by the rule of torch.nn.Conv2d; x is (N, H, W, words), weight (O, KH, KW, words)."""
    _, height, width, _ = x.shape
    _, kernel_h, kernel_w, _ = weight.shape
    return (
        (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1,
        (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1,
    )
