"""What an operator refuses, by the argument's name, before any implementation sees it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def words_of(channels: int, groups: int = 1) -> int:
    """int32 words that `channels` values in `groups` groups take."""
    return groups * (-(-(channels // groups) // 32))


def _require(condition: bool, error: type[Exception], text: str) -> None:
    if not condition:
        raise error(text)


def check_pack(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> None:
    """pack_sign's arguments."""
    _require(x.is_floating_point(), TypeError, f"x has dtype {x.dtype}, a floating one was expected")
    _require(channel_dim in (1, -1), ValueError, f"channel_dim={channel_dim} was given, 1 or -1 was expected")
    _require(channel_dim == -1 or x.dim() == 4, ValueError, f"x has {x.dim()} dimensions, (N, C, H, W) was expected")
    channels = x.shape[channel_dim]
    _require(groups >= 1 and channels % groups == 0, ValueError, f"groups={groups} does not divide {channels} channels")
    if shift is not None:
        _require(
            tuple(shift.shape) == (channels,),
            ValueError,
            f"shift has shape {tuple(shift.shape)}, ({channels},) was expected",
        )


def _check_words(x: Tensor, weight: Tensor, channels: int, groups: int, copies: int = 1) -> None:
    for name, tensor in (("x", x), ("weight", weight)):
        _require(
            tensor.dtype == torch.int32,
            TypeError,
            f"{name} has dtype {tensor.dtype}, packed bits in torch.int32 were expected: pack_sign makes them",
        )
    _require(x.device == weight.device, ValueError, f"x lies on {x.device} and weight on {weight.device}: move one")
    _require(copies >= 1, ValueError, f"copies={copies} was given, at least 1 was expected")
    _require(
        groups >= 1 and channels % groups == 0 and weight.shape[0] % groups == 0,
        ValueError,
        f"groups={groups} does not divide {channels} channels and {weight.shape[0]} filters",
    )
    words = words_of(channels, groups)
    _require(
        x.shape[-1] == words,
        ValueError,
        f"x has {x.shape[-1]} words, {words} were expected for {channels} channels in {groups} groups",
    )
    _require(
        weight.shape[-1] == words // groups,
        ValueError,
        f"weight has {weight.shape[-1]} words, {words // groups} were expected for a group of {channels // groups}",
    )


def _check_affine(scale: Tensor | None, bias: Tensor | None, out: int) -> None:
    _require((scale is None) == (bias is None), ValueError, "scale and bias go together: give both or neither")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None:
            _require(
                tensor.is_floating_point(), TypeError, f"{name} has dtype {tensor.dtype}, a floating one was expected"
            )
            shape = tuple(tensor.shape)
            _require(shape == (out,), ValueError, f"{name} has shape {shape}, ({out},) was expected")


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
    shapes = {"prelu": (out,), "residual": tuple(y_shape), "rprelu": (3, out), "sign_shift": (out,)}
    given = {"prelu": prelu, "residual": residual, "rprelu": rprelu, "sign_shift": sign_shift}
    for name, tensor in given.items():
        if tensor is None:
            continue
        _require(scale is not None, ValueError, f"{name} was given without scale and bias: the bare sums take no step")
        assert scale is not None
        _require(
            tensor.dtype == scale.dtype, TypeError, f"{name} has dtype {tensor.dtype}, scale's {scale.dtype} expected"
        )
        shape = tuple(tensor.shape)
        _require(shape == shapes[name], ValueError, f"{name} has shape {shape}, {shapes[name]} was expected")
    _require(
        sign_groups == 0 or (scale is not None and sign_groups > 0 and out % sign_groups == 0),
        ValueError,
        f"sign_groups={sign_groups} was given, 0 or, with scale and bias, a divisor of {out} was expected",
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
    _require(x.dim() == 4, ValueError, f"x has {x.dim()} dimensions, (N, H, W, words) was expected")
    _require(weight.dim() == 4, ValueError, f"weight has {weight.dim()} dimensions, (O, KH, KW, words) was expected")
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        _require(
            len(pair) == 2 and min(pair) >= least,
            ValueError,
            f"{name}={list(pair)} was given, two whole numbers of at least {least} were expected",
        )
    _require(pad_value in (0, -1), ValueError, f"pad_value={pad_value} was given, 0 or -1 was expected")
    _check_words(x, weight, channels, groups, copies)
    _check_affine(scale, bias, copies * weight.shape[0])
    height, width = conv_output_size(x, weight, stride, padding, dilation)
    _require(
        height >= 1 and width >= 1,
        ValueError,
        f"x is {x.shape[1]}x{x.shape[2]}, smaller than the kernel {weight.shape[1]}x{weight.shape[2]} reaches",
    )


def check_linear(
    x: Tensor, weight: Tensor, features: int, groups: int, copies: int, scale: Tensor | None, bias: Tensor | None
) -> None:
    """binary_linear's arguments."""
    _require(weight.dim() == 2, ValueError, f"weight has {weight.dim()} dimensions, (O, words) was expected")
    _check_words(x, weight, features, groups, copies)
    _check_affine(scale, bias, copies * weight.shape[0])


def conv_output_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """(H', W') by the rule of torch.nn.Conv2d; x is (N, H, W, words), weight (O, KH, KW, words)."""
    height, width = (
        (x.shape[1 + i] + 2 * padding[i] - dilation[i] * (weight.shape[1 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return height, width
