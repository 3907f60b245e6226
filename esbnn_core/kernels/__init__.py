"""Packed operators in the torch.library namespace `esbnn`, and the contract that every implementation keeps.

The contract
------------
*Bits.* One value of +-1 is one bit: 1 for +1, 0 for -1. sign(0) = +1, sign(NaN) = -1.
*Words.* int32, bit i of a word is value i of its run of 32 (the sign bit is value 31). The channels of each group are
  packed separately: C channels in g groups take g * ceil(C/g/32) words. Tail bits, past a group's last channel, are 0
  in activations and in weights, so that xor never counts them.
*Activations.* (N, H, W, words) int32, contiguous: channels innermost. Features of a linear layer: (..., words). A
  convolution also takes real ones, (N, C, H, W) in any layout, and packs sign(x + shift) itself.
*Weights.* (O, KH, KW, words of one group) int32, contiguous; filter o belongs to group o // (O/g). Linear: (O, words).
*Sum.* The exact int32 sum of +-1 products over the taps. A tap outside the image counts 0 for pad_value = 0 (it is
  skipped: its border class has fewer terms) and -w for pad_value = -1 (the ring holds 0-bits). With n valid values and
  m differing bits a sum is n - 2m.
*Epilogue*, in this order. Every step is rounded on its own in the dtype of `scale` (no fused multiply-add), because a
  sign follows and a different rounding flips it at ties:
  tile (channel j of copies*O takes sum j mod O) -> * scale + bias -> [PReLU, slope per channel] -> [+ residual, widened
  from its own dtype] -> [RPReLU: + shift_in, PReLU, + shift_out] -> y, rounded once to out_dtype -> [signs of the
  rounded y + sign_shift, packed in sign_groups groups: the bits that the next layer would make of y].
  Without `scale` and `bias` the tiled int32 sums themselves are returned, and no later step may be asked for.
*Output.* y (N, copies*O, H', W') in channels_last memory; bits (N, H', W', words), or an empty (0,) int32 tensor when
  sign_groups = 0.

`reference` (plain torch) defines what is right and serves every device. Where `cpu` or `cuda` has native code for the
given tensors the operator calls that, which is tested against `reference` in every bit. The operators have no
derivative.
"""

import torch
from torch import Tensor

from esbnn_core.kernels import cpu, cuda, operators, reference
from esbnn_core.kernels.call import SUMS, ConvCall, Epilogue, Geometry
from esbnn_core.kernels.checks import words_of
from esbnn_core.kernels.direct import unwatched

__all__ = [
    "SUMS",
    "ConvCall",
    "Epilogue",
    "Geometry",
    "binary_conv2d",
    "binary_linear",
    "cpu",
    "cuda",
    "lanes_of",
    "operators",
    "pack_sign",
    "reference",
    "words_of",
]


def lanes_of(weight: Tensor, groups: int) -> Tensor | None:
    """The packed weight in the order in which its device's implementation reads it, int32; None where there is none."""
    return cuda.lanes_of(weight, groups) if weight.is_cuda else cpu.lanes_of(weight, groups)


def pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    """Bits of sign(x + shift).

    Args:
        x: floating; (N, C, H, W) with channel_dim 1, or (..., C) with channel_dim -1.
        shift: (C,) or None.
        groups: of the operator that reads the bits.
        channel_dim: 1 or -1.

    Returns:
        (N, H, W, words) or (..., words) int32.

    Raises:
        TypeError, ValueError: an argument that the contract refuses, by its name.
    """
    bits: Tensor = torch.ops.esbnn.pack_sign.default(x, shift, groups, channel_dim)
    return bits


def binary_conv2d(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    epilogue: Epilogue = SUMS,
    shift: Tensor | None = None,
    lanes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Binary convolution with the fused epilogue (contract: see the module).

    Args:
        x: (N, H, W, words) int32 or (N, C, H, W) floating.
        weight: (O, KH, KW, words of a group) int32.
        geometry: the shape of the convolution.
        epilogue: the steps after the sums; the default returns the int32 sums.
        shift: (C,), added to a floating x before its sign, or None.
        lanes: lanes_of(weight, groups), which a native implementation otherwise makes at every call; or None.

    Returns:
        y and bits.

    Raises:
        TypeError, ValueError: an argument that the contract refuses, by its name.
    """
    if unwatched(x, epilogue.residual):
        return operators.serve(ConvCall(x, weight, geometry, epilogue, shift, lanes))
    y: Tensor
    bits: Tensor
    y, bits = torch.ops.esbnn.binary_conv2d.default(
        x, weight, *geometry, *epilogue[:-1], lanes, shift, epilogue.out_dtype
    )
    return y, bits


def binary_linear(
    x: Tensor,
    weight: Tensor,
    features: int,
    groups: int,
    copies: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    lanes: Tensor | None = None,
) -> Tensor:
    """Binary matrix product of packed bits.

    Args:
        x: (..., words) int32.
        weight: (O, words of a group) int32.
        features: I over all groups.
        groups: of the features and of the filters.
        copies: tiles of the O outputs.
        scale: (copies*O,) floating, or None for the int32 sums.
        bias: as scale.
        lanes: as binary_conv2d.

    Returns:
        (..., copies*O) in the dtype of scale, or int32.

    Raises:
        TypeError, ValueError: an argument that the contract refuses, by its name.
    """
    y: Tensor = torch.ops.esbnn.binary_linear.default(x, weight, features, groups, copies, scale, bias, lanes)
    return y
