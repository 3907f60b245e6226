"""What an operator refuses, by the argument's name, before any implementation sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esbnn_core.kernels.call import ConvCall


def words_of(channels: int, groups: int = 1) -> int:
    """int32 words that `channels` values in `groups` groups take."""
    return groups * (-(-(channels // groups) // 32))


def _check_floating(name: str, dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating dtype, got {dtype}")


def _check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def check_pack(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> None:
    """pack_sign's arguments."""
    _check_floating("x", x.dtype)
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim must be 1 or -1, got {channel_dim}")
    if channel_dim == 1 and x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, H, W) for channel_dim=1, got {x.dim()}")
    channels = x.shape[channel_dim]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")
    _check_shift(shift, channels)


def _check_shift(shift: Tensor | None, channels: int) -> None:
    if shift is not None:
        _check_floating("shift", shift.dtype)
        _check_shape("shift", shift, (channels,))


def _check_bits(x: Tensor, channels: int, groups: int) -> None:
    if x.dtype != torch.int32:
        raise TypeError(f"x must be packed bits in torch.int32, got {x.dtype}: pack_sign makes them")
    words = words_of(channels, groups)
    if x.shape[-1] != words:
        raise ValueError(f"x must have {words} words for {channels} channels in {groups} groups, got {x.shape[-1]}")


def _check_weight(x: Tensor, weight: Tensor, channels: int, groups: int, copies: int) -> None:
    if weight.dtype != torch.int32:
        raise TypeError(f"weight must be packed bits in torch.int32, got {weight.dtype}: pack_sign makes them")
    if x.device != weight.device:
        raise ValueError(f"x and weight must be on one device, got {x.device} and {weight.device}: move one of them")
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if groups < 1 or channels % groups or weight.shape[0] % groups:
        raise ValueError(f"groups must divide {channels} channels and {weight.shape[0]} filters, got {groups}")
    words = words_of(channels // groups)
    if weight.shape[-1] != words:
        raise ValueError(
            f"weight must have {words} words for the {channels // groups} channels of a group, got {weight.shape[-1]}"
        )


def _check_affine(scale: Tensor | None, bias: Tensor | None, out: int) -> None:
    if (scale is None) != (bias is None):
        raise ValueError("scale and bias go together: give both or neither")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None:
            _check_floating(name, tensor.dtype)
            _check_shape(name, tensor, (out,))


def _check_steps(call: ConvCall, y_shape: tuple[int, int, int, int]) -> None:
    """What follows the affine; y_shape is (N, copies*O, H', W')."""
    scale, _, prelu, residual, rprelu, sign_shift, sign_groups, out_dtype = call.epilogue
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
            raise ValueError(f"{name} needs scale and bias: the bare sums take no step")
        if name == "residual":
            _check_floating(name, tensor.dtype)
        elif tensor.dtype != scale.dtype:
            raise TypeError(f"{name} must have the dtype of scale, {scale.dtype}, got {tensor.dtype}")
        _check_shape(name, tensor, shape)
    if out_dtype is not None:
        if scale is None:
            raise ValueError("out_dtype needs scale and bias: the bare sums are int32")
        _check_floating("out_dtype", out_dtype)
    if sign_groups != 0 and (scale is None or sign_groups < 0 or out % sign_groups):
        raise ValueError(f"sign_groups must be 0 or, with scale and bias, divide {out} channels, got {sign_groups}")


def check_conv(call: ConvCall) -> tuple[int, int]:
    """binary_conv2d's arguments; returns (H', W')."""
    x, weight, geometry, epilogue, shift, _ = call
    channels, stride, padding, pad_value, dilation, groups, copies = geometry
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions, (N, H, W, words) or floating (N, C, H, W), got {x.dim()}")
    if weight.dim() != 4:
        raise ValueError(f"weight must have 4 dimensions (O, KH, KW, words), got {weight.dim()}")
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{name} must be two whole numbers of at least {least}, got {list(pair)}")
    if pad_value not in (0, -1):
        raise ValueError(f"pad_value must be 0 or -1, got {pad_value}")
    _check_weight(x, weight, channels, groups, copies)
    if x.is_floating_point():
        if x.shape[1] != channels:
            raise ValueError(f"x must have {channels} channels as `channels` says, got {x.shape[1]}")
        _check_shift(shift, channels)
    else:
        _check_bits(x, channels, groups)
        if shift is not None:
            raise ValueError("shift needs a floating x: it is added before the sign, which packed bits already are")
    _check_affine(epilogue.scale, epilogue.bias, call.out_channels)
    height, width = call.output_size()
    if height < 1 or width < 1:
        size, kernel = "x".join(map(str, call.size)), "x".join(map(str, weight.shape[1:3]))
        raise ValueError(f"x must be at least as large as the reach of the {kernel} kernel, got {size}")
    _check_steps(call, (x.shape[0], call.out_channels, height, width))
    return height, width


def check_linear(
    x: Tensor, weight: Tensor, features: int, groups: int, copies: int, scale: Tensor | None, bias: Tensor | None
) -> None:
    """binary_linear's arguments."""
    if weight.dim() != 2:
        raise ValueError(f"weight must have 2 dimensions (O, words), got {weight.dim()}")
    _check_weight(x, weight, features, groups, copies)
    _check_bits(x, features, groups)
    _check_affine(scale, bias, copies * weight.shape[0])
