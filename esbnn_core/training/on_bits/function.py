"""The autograd function of a unit on bits: its forward starts from exact sums, its backward keeps bits.

Kept for backward: what esbnn_core.training.on_bits.signs describes of the input, the weight's bits and, where its
estimator reads them, its values (the parameter itself, unless it is centred first), one vector a channel long for each
step, and a shortcut module's output where an activation follows it. Backward convolves the bits again for the sums (or
keeps these in 16 bits) and computes everything after them again.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esbnn_core.kernels.cpu.narrow import computing_dtype
from esbnn_core.kernels.training import steps_of
from esbnn_core.training.on_bits.plan import (
    Plan,
    Vectors,
    factor_of,
    norm_of,
    prepared_tail,
    tail_of,
    through_factor,
)
from esbnn_core.training.on_bits.product import AnyGeometry, gradients, gradients_before_sign, sums_of
from esbnn_core.training.on_bits.rows import map_of, rows_of, without_autocast, work_dtype
from esbnn_core.training.on_bits.signs import mask_bits, signs_of, through, through_mask, unpack
from esbnn_core.training.on_bits.statistics import from_moments
from esbnn_core.training.on_bits.tail import add_statistics, finish, unfinish
from esbnn_core.training.on_bits.weights import through_weight


class UnitOnBits(torch.autograd.Function):
    """(plan, sums, bits, weight_bits, lanes, statistics, prepared, x, shift, weight, residual, *Vectors) -> y.

    sums (N, O, H', W') int32 are those of sign(x + shift) and of the weight's signs. statistics are theirs over the
    batch, None without a norm: mean and variance (2, O) float64, or, with what a library has prepared of them (see
    statistics.prepared), the moments (2, O) int64. bits are x's, None where x itself is kept. residual is a shortcut
    module's output. lanes are the weight bits'. Differentiable: x and what follows it. y (N, C', H', W') is
    channels_last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        sums: Tensor,
        bits: Tensor | None,
        weight_bits: Tensor,
        lanes: Tensor | None,
        statistics: Tensor | None,
        prepared: Tensor | None,
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
            if prepared is None or statistics is None:
                mean, var = (None, None) if statistics is None else statistics
                tail = tail_of(plan, vectors, mean, factor_of(plan, *_double([*vectors[:2], var])), work)
            else:
                tail = prepared_tail(plan, vectors, statistics, prepared)
            added = x if plan.identity else residual
            with without_autocast(x.device):
                rows = finish(tail, rows_of(sums), None if added is None else rows_of(added), plan.out)
                y = map_of(rows, sums).detach()  # no view of its rows: what comes next may change it in place
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
            *(weight_bits, lanes, statistics, prepared, shift),
            weight if plan.weight_rule.ste != "identity" else None,
            *vectors,
        )
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        x, bits, mask, sums, residual, weight_bits, lanes, statistics, prepared, shift, latent, *numbers = (
            ctx.saved_tensors
        )
        vectors, geometry = Vectors(*numbers), plan.geometry
        (grad,) = grads
        residual_rows: Tensor | None = None
        vector_grads: list[Tensor | None] = [None] * len(vectors)
        if plan.bare:
            sums_grad = grad
        else:
            if sums is None:
                sums = sums_of(geometry, x, shift, bits, weight_bits, lanes)
            with without_autocast(grad.device):
                added = x if plan.identity else residual
                operands = (rows_of(grad), rows_of(sums), None if added is None else rows_of(added))
                through_all = None if prepared is None else _through_norm(ctx, vectors, statistics, prepared, *operands)
                if through_all is None:
                    # moments are left where a library prepared the forward and does not serve the backward
                    statistics = statistics if prepared is None else from_moments(statistics, plan.rows)
                    through_all = _through_tail(ctx, vectors, statistics, *operands)
                rows, residual_rows, vector_grads = through_all
            sums_grad = map_of(rows, grad)
        exact = computing_dtype(plan.narrow, grad.device)
        weight = unpack(weight_bits, ctx.weight_shape[1], 1, exact).permute(0, 3, 1, 2)
        wants_x, wants_shift, wants_weight = ctx.needs_input_grad[7:10]
        wanted = (wants_x or wants_shift, wants_weight)
        sums_grad = sums_grad.to(plan.narrow).to(exact)
        onto = residual_rows if plan.identity else None
        whole = None
        if bits is None and plan.narrow == torch.float32:  # what is rounded is rounded again after the product
            whole = gradients_before_sign(geometry, sums_grad, x, shift, weight, plan.rule, onto, wanted)
        if whole is not None:
            x_grad, weight_grad, shift_grad = whole
        else:
            signs = signs_of(x, shift, exact) if bits is None else _signs(bits, geometry, exact)
            found = gradients(geometry, sums_grad, signs, weight, wanted)
            x_grad, weight_grad = (None if part is None else part.to(plan.narrow) for part in found)
            del found
            del signs
            shift_grad = None
            if x_grad is not None:
                rows = rows_of(x_grad)
                if bits is None:
                    rows, shift_grad = through(plan.rule, rows, x, shift, onto)
                else:
                    rows, shift_grad = _through_bits(plan, rows, mask, shift, onto, ctx.x_dtype)
                x_grad = rows.to(ctx.x_dtype).view(ctx.x_shape[0], *ctx.x_shape[2:], -1).permute(0, 3, 1, 2)
        if weight_grad is not None and latent is not None:
            weight_grad = through_weight(plan.weight_rule, weight_grad, latent)
        if residual is not None or ctx.residual_dtype is not None:
            assert residual_rows is not None
            residual_grad: Tensor | None = map_of(residual_rows.to(ctx.residual_dtype), grad)
        else:
            residual_grad = None
        ends = [None if t is None or g is None else g.to(t.dtype) for g, t in zip(vector_grads, vectors, strict=True)]
        return (
            *[None] * 7,
            # no view of its rows: autograd adds another gradient of x in place to what nothing else holds
            None if x_grad is None else x_grad.detach(),
            None if shift is None or shift_grad is None else shift_grad.to(shift.dtype),
            None if weight_grad is None else weight_grad.to(ctx.weight_dtype),
            residual_grad,
            *ends,
        )


def _double(tensors: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    return (None if t is None else t.double() for t in tensors)


def _signs(bits: Tensor, geometry: AnyGeometry, dtype: torch.dtype) -> Tensor:
    return unpack(bits, geometry.channels, geometry.groups, dtype).permute(0, 3, 1, 2)


def _through_bits(
    plan: Plan, grad: Tensor, mask: Tensor | None, shift: Tensor | None, onto: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """As signs.through where bits are kept: from the estimator's mask or, without one, for the identity."""
    if mask is not None:
        return through_mask(mask, plan.geometry.groups, grad, shift, onto, dtype)
    shift_grad = None if shift is None else grad.sum(0, dtype=work_dtype(grad.dtype))
    return (grad if onto is None else onto.add_(grad)), shift_grad


Through = tuple[Tensor, Tensor | None, list[Tensor | None]]
"""Gradient rows of the sums and of the residual, and gradients of the vectors."""


def _through_norm(
    ctx: Any,
    vectors: Vectors,
    moments: Tensor,
    prepared: Tensor,
    grad: Tensor,
    sums: Tensor,
    added: Tensor | None,
) -> Through | None:
    """As _through_tail by a library; None where it does not serve."""
    plan: Plan = ctx.plan
    tail, call = prepared_tail(plan, vectors, moments, prepared), norm_of(plan, vectors, moments)
    done = tail.native().backward(grad, sums, added, plan.identity or ctx.residual_dtype is not None)
    made = None if done is None else steps_of(moments).norm_gradients(call, done[2])
    if done is None or made is None:
        return None
    constant, slope, *others = made.split(call.backward_sizes())
    if tail.inner is None:
        others[4] = others[2]  # with no step between them, of both or of their sum
    return add_statistics(tail, done[0], sums, constant, slope, plan.narrow), done[1], list(others)


def _through_tail(
    ctx: Any, vectors: Vectors, statistics: Tensor | None, grad: Tensor, sums: Tensor, added: Tensor | None
) -> Through:
    """From the gradient rows of y to those of the sums and of the residual, and to the gradients of the vectors.

    Where the statistics are the batch's, the sums also act on y through them: the mean subtracts the mean gradient, the
    variance adds a term along the centred sums.
    """
    plan: Plan = ctx.plan
    mean, var = (None, None) if statistics is None else statistics
    scale, gamma, var = _double([*vectors[:2], var])
    factor = factor_of(plan, scale, gamma, var)
    tail = tail_of(plan, vectors, mean, factor, ctx.work)
    wants_residual = plan.identity or ctx.residual_dtype is not None
    part = unfinish(tail, grad, sums, added, wants_residual)
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
