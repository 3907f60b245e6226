"""What a call on bits is besides its maps: its plan, its vectors of channels, and the tail that they make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esbnn_core.kernels.norm import NormCall
from esbnn_core.training.on_bits.product import AnyGeometry
from esbnn_core.training.on_bits.signs import SignRule
from esbnn_core.training.on_bits.tail import Kind, Tail


class Plan(NamedTuple):
    """What a call is besides its tensors.

    Attributes:
        geometry: of the convolution.
        rule: of its input's sign.
        copies: tiles.
        bare: whether the sums are the result, with no step after them.
        eps: of the norm over this batch's statistics, None where factor and offset are given.
        rows: number of rows that the statistics are taken over.
        reduce: sums a tensor over the processes that share the statistics, in place, or None.
        identity: whether the input itself is the residual.
        act: see Tail.
        limits: see Tail.
        narrow: dtype in which the gradients of the convolution's two operands are computed.
        out: dtype of the result.
        keep_sums: see TrainOnBits.
        weight_rule: of the sign of the weight.
    """

    geometry: AnyGeometry
    rule: SignRule
    copies: int
    bare: bool
    eps: float | None
    rows: int
    reduce: Callable[[Tensor], Any] | None
    identity: bool
    act: Kind
    limits: tuple[float, float]
    narrow: torch.dtype
    out: torch.dtype
    keep_sums: bool
    weight_rule: SignRule


class Vectors(NamedTuple):
    """One number for each channel: scale (O,); the others (C',), weight and bias of the norm and slopes and shifts."""

    scale: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    inner: Tensor | None
    shift_in: Tensor | None
    slope: Tensor | None
    shift_out: Tensor | None


def factor_of(plan: Plan, scale: Tensor | None, gamma: Tensor | None, var: Tensor | None) -> Tensor:
    """What the centred sums (O,) are multiplied by, (C'): scale * gamma / sqrt(scale^2 var + eps), or gamma alone."""
    if var is None or plan.eps is None:
        assert gamma is not None
        return gamma
    factor = ((var if scale is None else scale * scale * var) + plan.eps).rsqrt()
    factor = (factor if scale is None else factor * scale).repeat(plan.copies)
    return factor if gamma is None else factor * gamma


def through_factor(
    plan: Plan, scale: Tensor | None, gamma: Tensor | None, var: Tensor | None, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """From the gradient (C') of factor_of to those of scale, gamma and var, None where these are; all float64.

    With r = 1 / sqrt(scale^2 var + eps) the derivatives of scale * r are eps r^3 by scale and -(scale r)^3 / 2 by var.
    """
    if var is None or plan.eps is None:
        return None, grad, None
    root = ((var if scale is None else scale * scale * var) + plan.eps).rsqrt()
    part = root if scale is None else root * scale
    gamma_grad = None if gamma is None else grad * part.repeat(plan.copies)
    total = (grad if gamma is None else grad * gamma).view(plan.copies, -1).sum(0)
    scale_grad = None if scale is None else total * root.pow(3).mul_(plan.eps)
    return scale_grad, gamma_grad, total * part.pow(3).mul_(-0.5)


def tail_of(plan: Plan, vectors: Vectors, mean: Tensor | None, factor: Tensor, dtype: torch.dtype) -> Tail:
    """The tail with these vectors, in `dtype`."""
    cast = [None if t is None else t.to(dtype) for t in (mean, vectors.beta, *vectors[3:])]
    centre, offset, inner, shift_in, slope, shift_out = cast
    factor = factor.to(dtype)
    offset = torch.zeros_like(factor) if offset is None else offset
    if inner is None and shift_in is not None:
        offset, shift_in = offset + shift_in, None  # one sum instead of two; both have the same gradient
    return Tail(plan.copies, centre, factor, offset, inner, plan.act, shift_in, slope, shift_out, plan.limits)


def norm_of(plan: Plan, vectors: Vectors, moments: Tensor) -> NormCall:
    """The norm over a batch's moments, as a library takes it."""
    assert plan.eps is not None
    return NormCall(moments, plan.rows, plan.copies, plan.eps, vectors.scale, vectors.gamma)


def prepared_tail(plan: Plan, vectors: Vectors, moments: Tensor, prepared: Tensor) -> Tail:
    """The tail with what a library has prepared."""
    centre, factor, offset = prepared.split(norm_of(plan, vectors, moments).forward_sizes())
    _, _, _, inner, shift_in, slope, shift_out = vectors
    shift_in = None if inner is None else shift_in  # in the offset
    return Tail(plan.copies, centre, factor, offset, inner, plan.act, shift_in, slope, shift_out, plan.limits)
