"""A binary matrix product through a convolution: what every native implementation makes of it."""

from collections.abc import Callable

from torch import Tensor

Convolve = Callable[..., tuple[Tensor, Tensor] | None]
"""binary_conv2d of a native implementation (cpu or cuda)."""


def long_row(
    convolve: Convolve,
    x: Tensor,
    weight: Tensor,
    lanes: Tensor | None,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor | None:
    """As esbnn_core.kernels.binary_linear with checked arguments, by `convolve` on one long row; None where it does not
    serve. lanes: as binary_conv2d of that implementation.
    """
    rows = x.reshape(1, 1, -1, x.shape[-1])
    one, zero = (1, 1), (0, 0)
    none = (None, None, None, None, 0, None, None)
    size = (1, rows.shape[2])
    done = convolve(
        rows, weight[:, None, None], lanes, features, one, zero, -1, one, groups, copies, scale, bias, *none, size
    )
    return None if done is None else done[0].permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
