"""What a backward keeps of the input of a sign, and how it reads the signs and the estimator back.

The input itself where the estimator or a later step reads its values: the layer before keeps it anyway, so it costs
nothing more. Otherwise one bit a value for the sign and, for "clip", one for the estimator's mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import kernels
from esbnn_core.kernels.training import steps_of
from esbnn_core.layers import Sign
from esbnn_core.layers.forwards import runs_as
from esbnn_core.layers.quantizers import STE, UNIT_VARIANCE
from esbnn_core.training.on_bits.rows import ChannelSum, map_of, pieces, rows_of, work_dtype


class SignRule(NamedTuple):
    """The estimator of a layer's sign.

    Attributes:
        ste: its name.
        clip: half width of "clip".
        standardised: whether it divides the input by its sample's deviation (UNIT_VARIANCE).
    """

    ste: STE
    clip: float
    standardised: bool

    @property
    def reads_values(self) -> bool:
        """Whether its derivative depends on more than a mask."""
        return self.ste in ("poly2", UNIT_VARIANCE)


def sign_rule(sign: nn.Module) -> SignRule | None:
    """The rule of a layer's `sign`, None for an unknown one; nn.Identity promises +-1 input, its own sign."""
    if runs_as(sign, nn.Identity):
        return SignRule("identity", 1.0, False)
    if isinstance(sign, Sign) and runs_as(sign, Sign):
        return SignRule(sign.ste, sign.clip, sign.ste == UNIT_VARIANCE)
    return None


def shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    """x + shift over rows (m, C), a new tensor that holds no -0.0: +0.0 added to -0.0 is +0.0."""
    return x + 0.0 if shift is None else x + (shift + 0.0)


def mask_bits(x: Tensor, shift: Tensor | None, clip: float, groups: int) -> Tensor:
    """Bits of |x + shift| <= clip in the order of pack_sign; exact, because a - b >= 0 just where a >= b."""
    rows = rows_of(x)
    difference = torch.empty(rows.shape, dtype=_dtype(x, shift), device=x.device)
    for piece in pieces(rows):
        difference[piece] = shifted(rows[piece], shift).abs_().neg_().add_(clip)
    return kernels.pack_sign(map_of(difference, x), None, groups, 1)


def _dtype(x: Tensor, shift: Tensor | None) -> torch.dtype:
    return x.dtype if shift is None else torch.promote_types(x.dtype, shift.dtype)


def unpack(words: Tensor, channels: int, groups: int, dtype: torch.dtype) -> Tensor:
    """(..., words) as pack_sign packs them -> (..., channels) +-1 of `dtype`."""
    done = steps_of(words).unpack(words, channels, groups, dtype)
    return unpack_in_torch(words, channels, groups, (-1.0, 1.0), dtype) if done is None else done


def unpack_in_torch(
    words: Tensor, channels: int, groups: int, values: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """(..., words) as pack_sign packs them -> (..., channels) with values[bit].

    Eight bits at a time from a table; the bytes of a word come lowest first, as on every machine that torch serves.
    """
    bits = torch.arange(256, device=words.device)[:, None] >> torch.arange(8, device=words.device) & 1
    table = torch.tensor(values, dtype=dtype, device=words.device)[bits]
    spread = F.embedding(words.contiguous().view(torch.uint8).int(), table).unflatten(-2, (groups, -1)).flatten(-2)
    used: Tensor = spread[..., : channels // groups]
    return used.flatten(-2)


def signs_of(x: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sign(x + shift) as +-1 (N, C, H, W) of `dtype`, channels_last."""
    rows = rows_of(x)
    done = steps_of(rows).signs(rows, shift, dtype)
    return map_of(signs_in_torch(rows, shift, dtype) if done is None else done, x)


def signs_in_torch(rows: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As signs_of, of rows (M, C) and in pieces of torch operators."""
    signs = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    one = torch.ones((), dtype=_dtype(rows, shift), device=rows.device)
    for piece in pieces(rows):
        torch.copysign(one, shifted(rows[piece], shift), out=signs[piece])
    return signs


def through(
    rule: SignRule, grad: Tensor, x: Tensor, shift: Tensor | None, onto: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """From the gradient of the signs to those of x and shift, where x itself is kept.

    Args:
        rule: the estimator.
        grad: rows (M, C); may be written over.
        x: (N, C, H, W).
        shift: (C,) or None.
        onto: rows (M, C) to which the gradient of x is added, in place, or None.

    Returns:
        Rows (M, C), and (C,) where there is a shift.
    """
    if rule.standardised:
        grad, shift_grad = _through_deviation(rule, grad, x, shift)
        return (grad if onto is None else onto.add_(grad)), shift_grad
    rows = rows_of(x)
    done = steps_of(grad).estimator(rule.ste, rule.clip, grad, rows, shift, None, onto, x.dtype)
    found, total = through_in_torch(rule, grad, rows, shift, onto) if done is None else done
    return found, None if shift is None else total


def through_in_torch(
    rule: SignRule, grad: Tensor, rows: Tensor, shift: Tensor | None, onto: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As through with x as rows (M, C), in pieces of torch operators; the second is the sum over rows in any case."""
    dtype = _dtype(rows, shift)
    out = torch.empty(rows.shape, dtype=dtype, device=rows.device) if onto is None else onto
    total = ChannelSum(rows.shape[1], rows.device)
    for piece in pieces(rows):
        a = estimator_(rule, shifted(rows[piece], shift)).mul_(grad[piece])
        total.add(a)
        if onto is None:
            out[piece] = a
        else:
            out[piece].add_(a)  # `+=` would copy the sum onto itself
    return out, total.total


def through_mask(
    mask: Tensor, groups: int, grad: Tensor, shift: Tensor | None, onto: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """As through, from the estimator's mask.

    Args:
        mask: as mask_bits makes it.
        groups: that it is packed in.
        grad: rows (M, C); may be written over.
        shift: (C,) or None.
        onto: as through.
        dtype: of x.
    """
    done = steps_of(grad).estimator("mask", 0.0, grad, None, shift, (mask, groups), onto, dtype)
    if done is None:
        found = grad * unpack_in_torch(mask, grad.shape[1], groups, (0.0, 1.0), grad.dtype).flatten(0, -2)
        total = found.sum(0, dtype=work_dtype(grad.dtype))
        done = (found if onto is None else onto.add_(found)), total
    return done[0], None if shift is None else done[1]


def estimator_(rule: SignRule, a: Tensor) -> Tensor:
    """The derivative at a that the rule uses in place of the sign's; may write over a."""
    if rule.ste == "identity":
        return a.fill_(1)
    if rule.ste == "clip":
        return (a.abs_() <= rule.clip).to(a.dtype)
    return torch.rsub(a.abs_(), 2, alpha=2).clamp_(min=0)


def _through_deviation(rule: SignRule, grad: Tensor, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As `through`, for the sign that divides by the deviation: autograd does the backward of the division."""
    sign = Sign(rule.ste, rule.clip)
    with torch.enable_grad():
        moved = (x if shift is None else x + shift.view(1, -1, 1, 1)).detach().requires_grad_()
        (pulled,) = torch.autograd.grad(sign(moved), moved, map_of(grad, x).to(moved.dtype))
    rows = rows_of(pulled)
    return rows, None if shift is None else rows.sum(0)
