"""What a binary convolution is given: one value that goes whole through checks, tracing and every implementation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SCHEMA = (
    "binary_conv2d(Tensor x, Tensor weight, SymInt channels, SymInt[] stride, SymInt[] padding, SymInt pad_value, "
    "SymInt[] dilation, SymInt groups, SymInt copies, Tensor? scale, Tensor? bias, Tensor? prelu, Tensor? residual, "
    "Tensor? rprelu, Tensor? sign_shift, SymInt sign_groups, Tensor? lanes=None, Tensor? shift=None, "
    "ScalarType? out_dtype=None) -> (Tensor, Tensor)"
)
"""The operator of torch.library. Exported programs on disk name it: neither its name nor this order may change."""


class Geometry(NamedTuple):
    """The shape of a binary convolution.

    Attributes:
        channels: C of the input, over all groups.
        stride: rows, columns.
        padding: rows, columns added on each side.
        pad_value: what a tap outside the image counts, 0 or -1.
        dilation: rows, columns.
        groups: of the channels and of the filters.
        copies: tiles of the O maps.
    """

    channels: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pad_value: int = 0
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    copies: int = 1


class Epilogue(NamedTuple):
    """The steps after the sums, each None (sign_groups: 0) where it is left out; the default is SUMS.

    Attributes:
        scale: (copies*O,) floating; goes together with bias.
        bias: (copies*O,), in the dtype of scale as every other vector here.
        prelu: slopes (copies*O,).
        residual: (N, copies*O, H', W') floating.
        rprelu: (3, copies*O): shift_in, slope, shift_out.
        sign_shift: (copies*O,), added before the packed signs are taken.
        sign_groups: groups that the signs of the output are packed in.
        out_dtype: of y, floating; None for the dtype of scale.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    prelu: Tensor | None = None
    residual: Tensor | None = None
    rprelu: Tensor | None = None
    sign_shift: Tensor | None = None
    sign_groups: int = 0
    out_dtype: torch.dtype | None = None


SUMS = Epilogue()
"""No step at all: the int32 sums."""


class ConvCall(NamedTuple):
    """One call of the operator.

    Attributes:
        x: (N, H, W, words) int32, or (N, C, H, W) floating.
        weight: (O, KH, KW, words of a group) int32.
        geometry: the shape of the convolution.
        epilogue: the steps after the sums.
        shift: (C,), added to a floating x before its sign, or None.
        lanes: `esbnn_core.kernels.lanes_of(weight, groups)`, or None: a native implementation then makes them itself.
    """

    x: Tensor
    weight: Tensor
    geometry: Geometry
    epilogue: Epilogue = SUMS
    shift: Tensor | None = None
    lanes: Tensor | None = None

    @property
    def out_channels(self) -> int:
        """copies*O."""
        return self.geometry.copies * self.weight.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input."""
        _, first, second, third = self.x.shape
        return (second, third) if self.x.is_floating_point() else (first, second)

    @property
    def y_dtype(self) -> torch.dtype:
        """dtype of y."""
        scale, out_dtype = self.epilogue.scale, self.epilogue.out_dtype
        return torch.int32 if scale is None else out_dtype or scale.dtype

    def output_size(self) -> tuple[int, int]:
        """(H', W') by the rule of torch.nn.Conv2d."""
        height, width = self.size
        _, kernel_h, kernel_w, _ = self.weight.shape
        _, stride, padding, _, dilation, _, _ = self.geometry
        return (
            (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1,
            (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1,
        )


def call_of(
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
) -> ConvCall:
    """The call made of the operator's arguments, which have the names and the order of SCHEMA."""
    two = (tuple(stride), tuple(padding), tuple(dilation))  # lists, where torch hands them over
    geometry = Geometry(channels, two[0], two[1], pad_value, two[2], groups, copies)  # type: ignore[arg-type]
    epilogue = Epilogue(scale, bias, prelu, residual, rprelu, sign_shift, sign_groups, out_dtype)
    return ConvCall(x, weight, geometry, epilogue, shift, lanes)
