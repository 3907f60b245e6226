"""The product of a layer on bits: its geometry, the exact sums, and the gradients of both operands."""

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core import kernels
from esbnn_core.kernels import Geometry
from esbnn_core.kernels.cpu import winograd
from esbnn_core.kernels.transposed import TransposedGeometry, binary_conv_transpose2d
from esbnn_core.layers import BinaryConv2d, BinaryConvTranspose2d, BinaryLinear
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.conv_transpose import filters_of, weight_of
from esbnn_core.training.on_bits.signs import SignRule
from esbnn_core.training.on_bits.weights import RULES

AnyGeometry = Geometry | TransposedGeometry
BY_TILES = ((1, 1), (2, 2))
"""Strides of winograd.gradients."""


def geometry_of(layer: BinaryLayer) -> AnyGeometry:
    """The convolution that the layer computes: its own, or one over a long row of pixels for a linear layer."""
    if isinstance(layer, BinaryConvTranspose2d):
        sizes = (layer.stride, layer.padding, layer.output_padding, layer.dilation)
        return TransposedGeometry(layer.in_channels, *sizes, layer.groups)
    if isinstance(layer, BinaryConv2d):
        shape = (layer.in_channels, layer.stride, layer.padding, layer.pad_value, layer.dilation, layer.groups)
        return Geometry(*shape)
    assert isinstance(layer, BinaryLinear)
    return Geometry(layer.in_features, groups=layer.groups)


def pack(geometry: AnyGeometry, x: Tensor, shift: Tensor | None) -> Tensor:
    """Bits of sign(x + shift) of (N, C, H, W)."""
    return kernels.pack_sign(x, shift, geometry.groups, 1)


def sums_of(
    geometry: AnyGeometry,
    x: Tensor,
    shift: Tensor | None,
    bits: Tensor | None,
    weight_bits: Tensor,
    lanes: Tensor | None,
) -> Tensor:
    """Exact int32 sums (N, O, H', W'), channels_last, of packed weights and of sign(x + shift), or its `bits`.

    `lanes` are the weight's, as kernels.ConvCall has them, or None; a transposed convolution reads none.
    """
    if bits is None and x.dtype == torch.float64:  # native operators take only its bits
        bits = pack(geometry, x, shift)
    if bits is not None:
        x, shift = bits, None
    if isinstance(geometry, TransposedGeometry):
        return binary_conv_transpose2d(x, weight_bits, geometry, shift=shift)
    return kernels.binary_conv2d(x, weight_bits, geometry, shift=shift, lanes=lanes)[0]


def gradients(
    geometry: AnyGeometry, grad: Tensor, signs: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> list[Tensor | None]:
    """Gradients of the product's operands from the gradient of its sums.

    Args:
        geometry: of the convolution.
        grad: (N, O, H', W').
        signs: the +-1 input (N, C, H, W).
        weight: the +-1 weight (O, I, KH, KW).
        wanted: whether those of the signs and of the weight are wanted.

    Returns:
        That of the signs and that of the weight, None where not wanted.
    """
    if isinstance(geometry, TransposedGeometry):
        return _transposed_gradients(geometry, grad, signs, weight, wanted)
    _, stride, padding, pad_value, dilation, groups, _ = geometry
    rows, columns = padding
    if stride in BY_TILES and dilation == (1, 1):
        found = winograd.gradients(grad, signs, weight, stride[0], padding, pad_value, groups, wanted)
        if found is not None:
            return [found.x, found.weight]
    ring = pad_value == -1 and any(padding)
    if ring:
        signs = F.pad(signs, (columns, columns, rows, rows), value=-1.0)
    shape = (stride, (0, 0) if ring else padding, dilation, False, (0, 0), groups)
    x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(grad, signs, weight, None, *shape, [*wanted, False])
    if ring and x_grad is not None:
        height, width = x_grad.shape[2] - 2 * rows, x_grad.shape[3] - 2 * columns
        x_grad = x_grad[:, :, rows:, columns:][:, :, :height, :width]
    return [x_grad, weight_grad]


def gradients_before_sign(
    geometry: AnyGeometry,
    grad: Tensor,
    x: Tensor,
    shift: Tensor | None,
    weight: Tensor,
    rule: SignRule,
    onto: Tensor | None,
    wanted: tuple[bool, bool],
) -> winograd.Gradients | None:
    """As gradients and then signs.through, without a map between them; None where both are needed.

    Args:
        geometry: of the convolution.
        grad: (N, O, H', W').
        x: (N, C, H, W), whose signs are the convolution's input.
        shift: (C,) or None.
        weight: the +-1 weight (O, I, KH, KW).
        rule: the estimator.
        onto: rows (N*H*W, C) to which the gradient of x is added, in place, or None.
        wanted: whether that of x and of the shift, and that of the weight are wanted.
    """
    if isinstance(geometry, TransposedGeometry) or geometry.stride not in BY_TILES or geometry.dilation != (1, 1):
        return None
    if rule.standardised or rule.ste not in RULES:
        return None
    before = winograd.BeforeSign(shift, rule.ste, rule.clip, onto)
    shape = (geometry.stride[0], geometry.padding, geometry.pad_value, geometry.groups)
    return winograd.gradients(grad, x, weight, *shape, wanted, before)


def _transposed_gradients(
    geometry: TransposedGeometry, grad: Tensor, signs: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> list[Tensor | None]:
    _, stride, padding, output_padding, dilation, groups, _ = geometry
    shape = (stride, padding, dilation, True, output_padding, groups)
    weight = weight_of(weight, groups)
    x_grad, weight_grad, _ = torch.ops.aten.convolution_backward(grad, signs, weight, None, *shape, [*wanted, False])
    return [x_grad, None if weight_grad is None else filters_of(weight_grad, groups)]
