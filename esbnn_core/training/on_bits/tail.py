"""The steps of a unit after its sums, forward and backward: affine -> [PReLU] -> [+ residual] -> [activation].

They work on rows (M, C') of C' = copies*O channels in place of maps. The sums are those of the O filters: a tile is a
broadcast here, and what all copies share is computed once. Native code does them in one pass where it serves;
the torch code here defines what is right and serves everywhere.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esbnn_core.kernels.tail import TailSteps
from esbnn_core.kernels.training import steps_of
from esbnn_core.training.on_bits.rows import ChannelSum, pieces

Kind = Literal["none", "prelu", "hardtanh"]


class Tail(NamedTuple):
    """The parameters of the steps, all of the dtype that they compute in.

    Attributes:
        copies: tiles.
        centre: (O,) subtracted from the sums first, or None.
        factor: (C',).
        offset: (C',).
        inner: slope (C',) of the PReLU before the residual, or None.
        act: what comes after the residual; a "prelu" with a shift before and after is RPReLU.
        shift_in: (C',) or None.
        slope: (C',) or None.
        shift_out: (C',) or None.
        limits: of the hardtanh.
    """

    copies: int
    centre: Tensor | None
    factor: Tensor
    offset: Tensor
    inner: Tensor | None = None
    act: Kind = "none"
    shift_in: Tensor | None = None
    slope: Tensor | None = None
    shift_out: Tensor | None = None
    limits: tuple[float, float] = (-1.0, 1.0)

    def native(self) -> TailSteps:
        """The same for the native code of their device."""
        vectors = (self.factor, self.offset, self.inner, self.shift_in, self.slope, self.shift_out)
        return steps_of(self.factor).TailCall(self.copies, self.centre, vectors, self.act, self.limits)

    def centred(self, sums: Tensor) -> Tensor:
        """A piece of the sums, (m, O) of any dtype, less the centre; a new tensor."""
        d = sums.to(self.factor.dtype, copy=True)
        return d if self.centre is None else d.sub_(self.centre)

    def affine(self, d: Tensor) -> Tensor:
        """(m, O) -> factor * tile(d) + offset (m, C')."""
        shape = (self.copies, -1)
        y = torch.addcmul(self.offset.view(shape), d.unsqueeze(1), self.factor.view(shape))
        return y.flatten(1)

    def before_act(self, affine: Tensor, residual: Tensor | None) -> Tensor:
        """Input (m, C') of the activation; may write over `affine` where there is no inner PReLU."""
        z = affine if self.inner is None else F.prelu(affine, self.inner)
        z = z if residual is None else z.add_(residual)
        return z if self.shift_in is None else z.add_(self.shift_in)


class TailGrads(NamedTuple):
    """Gradients of the tail.

    Attributes:
        sums: rows (M, O), of the centred sums.
        residual: rows (M, C') or None.
        factor: (C',) float64, as all that follow.
        offset: likewise.
        inner: likewise.
        shift_in: likewise.
        slope: likewise.
        shift_out: likewise.
    """

    sums: Tensor
    residual: Tensor | None
    factor: Tensor
    offset: Tensor
    inner: Tensor
    shift_in: Tensor
    slope: Tensor
    shift_out: Tensor


def finish(tail: Tail, sums: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """From sums (M, O) to y (M, C') of `dtype`; residual (M, C') or None."""
    done = tail.native().forward(sums, residual, dtype)
    return finish_in_torch(tail, sums, residual, dtype) if done is None else done


def finish_in_torch(tail: Tail, sums: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As finish, in pieces of torch operators."""
    y = torch.empty(sums.shape[0], len(tail.factor), dtype=dtype, device=sums.device)
    for piece in pieces(y):
        z = tail.before_act(tail.affine(tail.centred(sums[piece])), None if residual is None else residual[piece])
        if tail.act == "hardtanh":
            torch.clamp(z, *tail.limits, out=y[piece])
        elif tail.slope is None:
            y[piece] = z
        elif tail.shift_out is None:
            y[piece] = F.prelu(z, tail.slope)
        else:
            torch.add(F.prelu(z, tail.slope), tail.shift_out, out=y[piece])
    return y


def unfinish(tail: Tail, grad: Tensor, sums: Tensor, residual: Tensor | None, wants_residual: bool) -> TailGrads:
    """Gradients of finish; the pre-activations are computed again from the sums.

    Args:
        tail: as finish.
        grad: rows (M, C') of y.
        sums: (M, O).
        residual: (M, C'), read only where an activation follows it, or None.
        wants_residual: whether to compute the gradient of the residual.
    """
    done = tail.native().backward(grad, sums, residual, wants_residual)
    if done is None:
        return unfinish_in_torch(tail, grad, sums, residual, wants_residual)
    sums_grad, residual_grad, totals = done
    offset, factor, inner, shift_in, slope, shift_out = totals
    shift_in = offset if tail.inner is None else shift_in
    return TailGrads(sums_grad, residual_grad, factor, offset, inner, shift_in, slope, shift_out)


def unfinish_in_torch(
    tail: Tail, grad: Tensor, sums: Tensor, residual: Tensor | None, wants_residual: bool
) -> TailGrads:
    """As unfinish, in pieces of torch operators."""
    channels, work = len(tail.factor), tail.factor.dtype
    sums_grad = torch.empty(sums.shape, dtype=work, device=grad.device)
    residual_grad = torch.empty(grad.shape, dtype=work, device=grad.device) if wants_residual else None
    factor, offset, inner, shift_in, slope, shift_out = (ChannelSum(channels, grad.device) for _ in range(6))
    for piece in pieces(grad):
        g = grad[piece].to(work)
        onto = None if residual_grad is None else residual_grad[piece]
        d = tail.centred(sums[piece])
        affine = tail.affine(d) if tail.inner is not None or tail.act != "none" else None
        if tail.act != "none":
            assert affine is not None
            rest = None if residual is None else residual[piece]
            z = tail.before_act(affine, rest)
            if tail.shift_out is not None:
                shift_out.add(g)
            if tail.act == "hardtanh":
                # strictly inside, as in torch
                g = g * ((z > tail.limits[0]) & (z < tail.limits[1]))
            elif tail.slope is not None:
                g = _through_prelu(g, z, tail.slope, slope, onto)
            if tail.shift_in is not None:
                shift_in.add(g)
        if onto is not None and g is not onto:
            onto.copy_(g)
        if tail.inner is not None:
            assert affine is not None
            g = _through_prelu(g, affine, tail.inner, inner, None)
        offset.add(g)
        tiled = g.unflatten(1, (tail.copies, -1))
        factor.add((tiled * d.unsqueeze(1)).flatten(1))
        if tail.copies == 1:
            torch.mul(g, tail.factor, out=sums_grad[piece])
        else:
            torch.sum(tiled * tail.factor.view(tail.copies, -1), 1, out=sums_grad[piece])
    if tail.inner is None:
        shift_in = offset  # with no step between them, of both or of their sum
    totals = (part.total for part in (factor, offset, inner, shift_in, slope, shift_out))
    return TailGrads(sums_grad, residual_grad, *totals)


def add_statistics(
    tail: Tail, grad: Tensor, sums: Tensor, constant: Tensor, slope: Tensor, dtype: torch.dtype
) -> Tensor:
    """grad + constant + slope * (sums - centre), rows (M, O): how the sums act through the batch's statistics.

    Args:
        tail: with a centre.
        grad: written over.
        sums: (M, O).
        constant: (O,) in the dtype of grad.
        slope: likewise.
        dtype: that the result has to have in the end; a native one has it at once.
    """
    assert tail.centre is not None
    done = steps_of(grad).add_statistics(grad, sums, tail.centre, constant, slope, dtype)
    return add_statistics_in_torch(tail, grad, sums, constant, slope) if done is None else done


def add_statistics_in_torch(tail: Tail, grad: Tensor, sums: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """As add_statistics, in pieces of torch operators and in place."""
    for piece in pieces(grad):
        grad[piece].add_(constant).addcmul_(tail.centred(sums[piece]), slope)
    return grad


def _through_prelu(g: Tensor, z: Tensor, slope: Tensor, slope_total: ChannelSum, out: Tensor | None) -> Tensor:
    """Gradient of prelu(z, slope) with respect to z, in `out` or a new tensor; the slope's is added to `slope_total`.

    Made of operators that have vector code on the CPU, which torch's own backward of prelu lacks. Writes over z.
    """
    above = torch.ops.aten.threshold_backward(g, z, 0)
    below = g - above
    slope_total.add(z.mul_(below))
    return torch.addcmul(above, below, slope, out=out)
