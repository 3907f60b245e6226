"""The autograd function of a unit on bits: its forward starts from exact sums, its backward keeps bits.

Kept for backward: what esbnn_core.training.on_bits.signs describes of the input, the weight's bits and, where its
estimator reads them, its values (the parameter itself, unless it is centred first), one vector a channel long for each
step, and a shortcut module's output where an activation follows it. Backward convolves the bits again for the sums (or
keeps these in 16 bits) and computes everything after them again.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esbnn_core.kernels.cpu.narrow import computing_dtype
from esbnn_core.training.on_bits.product import AnyGeometry, gradients, sums_of
from esbnn_core.training.on_bits.rows import map_of, rows_of, without_autocast, work_dtype
from esbnn_core.training.on_bits.signs import SignRule, mask_bits, signs_of, through, through_mask, unpack
from esbnn_core.training.on_bits.tail import Kind, Tail, add_statistics, finish, unfinish
from esbnn_core.training.on_bits.weights import through_weight


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


class UnitOnBits(torch.autograd.Function):
    """(plan, sums, bits, weight_bits, mean, var, x, shift, weight, residual, *Vectors) -> y (N, C', H', W').

    sums (N, O, H', W') int32 are those of sign(x + shift) and of the weight's signs; mean and var (O,) float64 are
    theirs over the batch, or None. bits are x's, None where x itself is kept. residual is a shortcut module's output.
    Differentiable: x and what follows it. y is channels_last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        sums: Tensor,
        bits: Tensor | None,
        weight_bits: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        x: Tensor,
        shift: Tensor | None,
        weight: Tensor,
        residual: Tensor | None,
        *numbers: Tensor | None,
    ) -> Tensor:
        vectors = Vectors(*numbers)
        work = work_dtype(plan.narrow, x.dtype)
        if plan.bare:
            y = sums.to(plan.out)
        else:
            tail = tail_of(plan, vectors, mean, factor_of(plan, *_double([*vectors[:2], var])), work)
            added = x if plan.identity else residual
            with without_autocast(x.device):
                y = map_of(finish(tail, rows_of(sums), None if added is None else rows_of(added), plan.out), sums)
        ctx.plan, ctx.weight_shape, ctx.x_shape, ctx.x_dtype, ctx.work = plan, weight.shape, x.shape, x.dtype, work
        ctx.weight_dtype, ctx.residual_dtype = weight.dtype, None if residual is None else residual.dtype
        mask = None
        if bits is not None and plan.rule.ste == "clip":
            mask = mask_bits(x, shift, plan.rule.clip, plan.geometry.groups)
        small = weight[0].numel() < 1 << 15  # no sum is larger
        kept_sums = (sums.to(torch.int16) if small else sums) if plan.keep_sums and not plan.bare else None
        ctx.save_for_backward(
            x if bits is None else None,
            bits,
            mask,
            kept_sums,
            residual if plan.act != "none" else None,
            *(weight_bits, mean, var, shift),
            weight if plan.weight_rule.ste != "identity" else None,
            *vectors,
        )
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        x, bits, mask, sums, residual, weight_bits, mean, var, shift, latent, *numbers = ctx.saved_tensors
        vectors, geometry = Vectors(*numbers), plan.geometry
        (grad,) = grads
        residual_rows: Tensor | None = None
        vector_grads: list[Tensor | None] = [None] * len(vectors)
        if plan.bare:
            sums_grad = grad
        else:
            if sums is None:
                sums = sums_of(geometry, x, shift, bits, weight_bits)
            with without_autocast(grad.device):
                rows, residual_rows, vector_grads = _through_tail(
                    ctx, vectors, mean, var, rows_of(grad), rows_of(sums), x if plan.identity else residual
                )
            sums_grad = map_of(rows, grad)
        channels, groups = geometry.channels, geometry.groups
        exact = computing_dtype(plan.narrow, grad.device)
        signs = signs_of(x, shift, exact) if bits is None else _signs(bits, channels, groups, exact)
        weight = unpack(weight_bits, ctx.weight_shape[1], 1, exact).permute(0, 3, 1, 2)
        wants_x, wants_shift, wants_weight = ctx.needs_input_grad[6:9]
        wanted = (wants_x or wants_shift, wants_weight)
        found = gradients(geometry, sums_grad.to(plan.narrow).to(exact), signs, weight, wanted)
        x_grad, weight_grad = (None if part is None else part.to(plan.narrow) for part in found)
        del found
        del signs
        if weight_grad is not None and latent is not None:
            weight_grad = through_weight(plan.weight_rule, weight_grad, latent)
        onto = residual_rows if plan.identity else None
        shift_grad: Tensor | None = None
        if x_grad is not None:
            rows = rows_of(x_grad)
            if bits is None:
                rows, shift_grad = through(plan.rule, rows, x, shift, onto)
            else:
                rows, shift_grad = _through_bits(plan, rows, mask, shift, onto, ctx.x_dtype)
            x_grad = rows.to(ctx.x_dtype).view(ctx.x_shape[0], *ctx.x_shape[2:], -1).permute(0, 3, 1, 2)
        if residual is not None or ctx.residual_dtype is not None:
            assert residual_rows is not None
            residual_grad: Tensor | None = map_of(residual_rows.to(ctx.residual_dtype), grad)
        else:
            residual_grad = None
        ends = [None if t is None or g is None else g.to(t.dtype) for g, t in zip(vector_grads, vectors, strict=True)]
        return (
            *[None] * 6,
            x_grad,
            None if shift_grad is None else shift_grad.to(shift.dtype),
            None if weight_grad is None else weight_grad.to(ctx.weight_dtype),
            residual_grad,
            *ends,
        )


def _double(tensors: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    return (None if t is None else t.double() for t in tensors)


def _signs(bits: Tensor, channels: int, groups: int, dtype: torch.dtype) -> Tensor:
    return unpack(bits, channels, groups, dtype).permute(0, 3, 1, 2)


def _through_bits(
    plan: Plan, grad: Tensor, mask: Tensor | None, shift: Tensor | None, onto: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """As signs.through where bits are kept: from the estimator's mask or, without one, for the identity."""
    if mask is not None:
        return through_mask(mask, plan.geometry.groups, grad, shift, onto, dtype)
    shift_grad = None if shift is None else grad.sum(0, dtype=work_dtype(grad.dtype))
    return (grad if onto is None else onto.add_(grad)), shift_grad


def _through_tail(
    ctx: Any, vectors: Vectors, mean: Tensor | None, var: Tensor | None, grad: Tensor, sums: Tensor, added: Any
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """From the gradient rows of y to those of the sums and of the residual, and to the gradients of the vectors.

    Where the statistics are the batch's, the sums also act on y through them: the mean subtracts the mean gradient, the
    variance adds a term along the centred sums.
    """
    plan: Plan = ctx.plan
    scale, gamma, var = _double([*vectors[:2], var])
    factor = factor_of(plan, scale, gamma, var)
    tail = tail_of(plan, vectors, mean, factor, ctx.work)
    wants_residual = plan.identity or ctx.residual_dtype is not None
    part = unfinish(tail, grad, sums, None if added is None else rows_of(added), wants_residual)
    scale_grad, gamma_grad, var_grad = through_factor(plan, scale, gamma, var, part.factor)
    if var is not None:
        assert var_grad is not None
        mean_grad = (factor * part.offset).view(plan.copies, -1).sum(0)
        both = torch.stack([mean_grad, var_grad])
        if plan.reduce is not None:
            plan.reduce(both)
        constant, slope = (-both[0] / plan.rows).to(ctx.work), (2 * both[1] / plan.rows).to(ctx.work)
        sums_grad = add_statistics(tail, part.sums, sums, constant, slope, plan.narrow)
    else:
        sums_grad = part.sums
    return sums_grad, part.residual, [scale_grad, gamma_grad, part.offset, *part[4:]]
