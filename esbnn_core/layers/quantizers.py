"""sign with its straight-through estimators, and the weight quantizers.

sign(0) = +1 everywhere, in training and on packed bits.
Differs from the paper: the original code uses torch.sign, which is 0 at 0, a third value that one bit cannot hold
(papers.md#sign-of-zero).
"""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import check_choice

STE = Literal["poly2", "clip", "identity", "poly2_unit_variance", "tent"]
"""Straight-through estimators, see sign_ste; "tent" is the earlier name of "poly2_unit_variance"."""

UNIT_VARIANCE: STE = "poly2_unit_variance"
"""ReCU's: as poly2, for an input that Sign first divides by the standard deviation of its sample (papers.md#recu)."""


def current_name(ste: STE) -> STE:
    """The estimator's name, with an earlier one replaced."""
    return UNIT_VARIANCE if ste == "tent" else ste


def hard_sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1 (NaN gives -1), in x's dtype; no gradient of its own."""
    # only where it matters: who follows a forward takes a detach for an end of the gradient's way
    x = x.detach() if x.requires_grad and torch.is_grad_enabled() else x
    # compared in x's dtype: from a mask of bools to numbers is several times slower on a CPU
    return x.clone().ge_(0).mul_(2).sub_(1)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ste: str, clip: float) -> Tensor:
        ctx.ste, ctx.clip = ste, clip
        if ste != "identity":
            ctx.save_for_backward(x)
        return hard_sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if ctx.ste == "identity":
            return grad, None, None
        (x,) = ctx.saved_tensors
        if ctx.ste == "clip":
            return x.abs().le_(ctx.clip).mul_(grad), None, None  # as a number, see hard_sign
        # poly2 is 2+2x on [-1,0) and 2-2x on [0,1): 2-2|x| without its negative part
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grad), None, None


def sign_ste(x: Tensor, ste: STE = "poly2", clip: float = 1.0) -> Tensor:
    """sign(x) whose backward is a straight-through estimator (papers.md#estimators).

    Args:
        x: any shape, floating dtype.
        ste: derivative used in backward. "poly2": 2-2|x| inside [-1, 1], 0 outside (Bi-Real, ReActNet).
            "clip": 1 on [-clip, clip], ends included. "identity": 1. "poly2_unit_variance": as poly2; the caller
            scales x to unit variance first (ReCU; esbnn_core.layers.Sign does so).
        clip: half width of "clip" (1 for XNOR-style weights, 1.5 for BNext activations).

    Raises:
        InputError: an unknown estimator.
    """
    check_choice("ste", ste, get_args(STE))
    out: Tensor = _Sign.apply(x, ste, clip)
    return out


class _StraightThrough(torch.autograd.Function):
    """Forward returns `value`, backward passes the gradient to `x` unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def centre(weight: Tensor) -> Tensor:
    """The weight (O, I, *k) minus the mean of each filter."""
    return weight - weight.flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))


class WeightQuantizer(nn.Module):
    """From a latent weight (O, I, *k) to the weight of the convolution, and a scale for its output.

    The layer convolves with `binary(weight)` and multiplies the sums, not the weight, by `scale(weight)`: sums of +-1
    products are exact in float32 below 2^24, so the latent and the packed path agree bit for bit.
    Subclasses override one or both methods.

    Args:
        ste: estimator of the weight's sign, see sign_ste.
        clip: half width of the "clip" estimator.
    """

    precision = 1
    """Bits per weight, read by counting and packing."""
    centred = False
    """Whether the signs are those of a filter minus its mean, which leaves a filter of one weight nothing to learn."""
    latent_clip: float | None = None
    """Bound that the optimizer hook keeps latent weights inside, +-latent_clip (esbnn_core.training.latent_clip)."""
    to_sign_mode = ""
    """Why `sign_mode` is False and how to change that, for errors."""

    def __init__(self, ste: STE = "clip", clip: float = 1.0) -> None:
        super().__init__()
        self.ste: STE = ste
        self.clip = clip

    def signed(self, weight: Tensor) -> Tensor:
        """The numbers whose sign is the binary weight, same shape: the weight itself, or centred."""
        return weight

    def binary(self, weight: Tensor) -> Tensor:
        """The weight of the convolution, same shape; exactly +-1 in sign mode."""
        return sign_ste(self.signed(weight), self.ste, self.clip)

    def scale(self, weight: Tensor) -> Tensor | None:
        """Scale (O,) of the layer's output, or None."""
        return None

    def sign_mode(self) -> bool:
        """Whether `binary` returns exactly +-1, as packing needs."""
        return True

    def extra_repr(self) -> str:
        return f"ste={self.ste}"


class PlainSign(WeightQuantizer):
    """sign(W), without a scale.

    Args:
        ste: estimator of the sign.
        clip: half width of the "clip" estimator.
        latent_clip: bound of the latent weights, or None.
    """

    def __init__(self, ste: STE = "clip", clip: float = 1.0, latent_clip: float | None = None) -> None:
        super().__init__(ste, clip)
        self.latent_clip = latent_clip
        if ste == "identity" and latent_clip is None:
            warnings.warn(
                "latent weights with the identity STE and no latent_clip can grow without bound: pass latent_clip",
                stacklevel=2,
            )


class RealWeights(WeightQuantizer):
    """The latent weight itself, without sign and scale: step 1 of the two-step recipes (papers.md#two-steps).

    It has no state, so that a network with it has the tensors of the binary network. real_weights_ of
    esbnn_core.transforms puts it in.
    """

    precision = 32
    to_sign_mode = "they are real numbers, step 1 of a two-step recipe: train step 2 from them first"

    def __init__(self) -> None:
        super().__init__("identity")

    def binary(self, weight: Tensor) -> Tensor:
        return weight

    def sign_mode(self) -> bool:
        return False


class AbsMean(WeightQuantizer):
    """alpha * sign(W) with alpha_o = mean |W| of filter o (papers.md#weight-quantizers).

    Of XNOR-Net, Bi-Real, ReActNet and BiDet.

    Args:
        ste: estimator of the sign.
        detach_scale: no gradient through alpha (ReActNet); False lets it through (BiDet).
        centred: the sign is that of W minus its filter's mean, alpha that of W itself (BinaryViT's linear layers).
        of_layer: one alpha for all filters together (DoReFa-Net).
    """

    def __init__(
        self, ste: STE = "clip", detach_scale: bool = True, centred: bool = False, of_layer: bool = False
    ) -> None:
        super().__init__(ste)
        self.detach_scale = detach_scale
        self.centred = centred
        self.of_layer = of_layer

    def signed(self, weight: Tensor) -> Tensor:
        return centre(weight) if self.centred else weight

    def scale(self, weight: Tensor) -> Tensor | None:
        alpha = weight.abs().mean().expand(len(weight)) if self.of_layer else weight.flatten(1).abs().mean(1)
        return alpha.detach() if self.detach_scale else alpha


class Temperature(WeightQuantizer):
    """clamp(W/T, -1, 1), and sign(W) once T < sign_below; identity STE (papers.md#bnext-temperature).

    `temperature` is a buffer (1,) that starts at 1. A hook at the end of an epoch multiplies it; 0.9 an epoch reaches
    sign mode at epoch 153. The optimizer hook keeps the latent weight inside +-1.5, forward does not write to it.

    Args:
        sign_below: temperature from which on the weights are signs: 1e-7 in BNext, 1e-5 in BNext-18
            (papers.md#bnext-18).
    """

    latent_clip: float | None = 1.5
    temperature: Tensor

    def __init__(self, sign_below: float = 1e-7) -> None:
        super().__init__("identity")
        self.sign_below = sign_below
        self.to_sign_mode = (
            f"its temperature is not annealed below {sign_below:g}: finish the temperature schedule or set the "
            f"temperature to 0 before packing"
        )
        self.register_buffer("temperature", torch.ones(1))

    def binary(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            clamped = (weight / self.temperature.clamp(min=1e-8)).clamp(-1, 1)
            # chosen on the device, because reading the temperature would wait for the GPU at every forward
            value = torch.where(self.temperature < self.sign_below, hard_sign(weight), clamped)
        out: Tensor = _StraightThrough.apply(weight, value)
        return out

    def sign_mode(self) -> bool:
        return bool(self.temperature.item() < self.sign_below)


class ReCU(WeightQuantizer):
    """ReCU's sign of the standardised, clamped weight: sign(clamp(w1, -Q, Q)), Q = -mean|w1| * ln(2 - 2 tau).

    `tau` is ReCU's quantile parameter, not the expansion factor: a buffer (1,) that is set at the start of every epoch.
    It changes the gradient alone, which is zero where w1 is clamped; the sign does not depend on it (papers.md#recu).
    """

    centred = True
    tau: Tensor

    def __init__(self) -> None:
        super().__init__("identity")
        self.register_buffer("tau", torch.full((1,), 0.85))

    def signed(self, weight: Tensor) -> Tensor:
        return centre(weight)

    def binary(self, weight: Tensor) -> Tensor:
        centred = self.signed(weight)
        if not (self.training and torch.is_grad_enabled()):
            return sign_ste(centred, "identity")  # neither the deviation nor the clamp changes a sign
        variance = centred.flatten(1).var(1).view(-1, *[1] * (weight.dim() - 1))
        w1 = centred * (2 * math.sqrt(2)) / (variance + 1e-5).sqrt()
        # detached: a clamped weight gets no gradient, not even through the mean; tau = 1 clamps nothing
        bound = -w1.detach().abs().mean() * torch.log(2 - 2 * self.tau)
        return sign_ste(torch.minimum(torch.maximum(w1, -bound), bound), "identity")


class Libra(WeightQuantizer):
    """IR-Net's balanced weights (Libra-PB): the sign of the standardised W, and a power of two as scale.

    w = (W - mean) / deviation of each filter. The binary weight is sign(w), the scale 2^round(log2(mean |w|)), which a
    bit shift can apply.
    Differs from the paper: the estimator is "clip" at w throughout, theirs sharpens over the epochs.
    """

    centred = True

    def __init__(self) -> None:
        super().__init__("clip")

    def signed(self, weight: Tensor) -> Tensor:
        return centre(weight)

    def standardised(self, weight: Tensor) -> Tensor:
        """w, same shape; 0 where a filter is constant."""
        centred = self.signed(weight)
        deviation = centred.flatten(1).std(1).clamp(min=torch.finfo(weight.dtype).tiny)
        return centred / deviation.view(-1, *[1] * (weight.dim() - 1))

    def binary(self, weight: Tensor) -> Tensor:
        return sign_ste(self.standardised(weight), self.ste, self.clip)

    def scale(self, weight: Tensor) -> Tensor | None:
        with torch.no_grad():
            return self.standardised(weight).flatten(1).abs().mean(1).log2().round().exp2()


WEIGHT_QUANTIZERS: Mapping[str, Callable[[], WeightQuantizer]] = MappingProxyType(
    {
        "sign": PlainSign,
        "absmean": AbsMean,
        "absmean_attached": partial(AbsMean, ste="identity", detach_scale=False),
        "absmean_centred": partial(AbsMean, centred=True),
        "absmean_layer": partial(AbsMean, ste="identity", of_layer=True),
        "libra": Libra,
        "temperature": Temperature,
        "recu": ReCU,
    }
)
"""By name, the function that makes a weight quantizer.

"sign"              sign(W), clip STE.
"absmean"           alpha = mean |W| without gradient, clip STE (ReActNet).
"absmean_attached"  the gradient passes through alpha, identity STE (BiDet).
"absmean_centred"   as absmean, each filter centred (BinaryViT).
"absmean_layer"     one alpha a layer, identity STE (DoReFa-Net).
"libra"             IR-Net.
"temperature"       BNext.
"recu"              ReCU.
"""

QuantizerChoice = str | Callable[[], WeightQuantizer] | WeightQuantizer
"""A name of WEIGHT_QUANTIZERS, a function that makes a quantizer, or a quantizer."""


def make_weight_quantizer(kind: QuantizerChoice) -> WeightQuantizer:
    """The quantizer itself, or a new one by name or function.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(kind, WeightQuantizer):
        return kind
    if not callable(kind):
        check_choice("weight_quantizer", kind, WEIGHT_QUANTIZERS)
        kind = WEIGHT_QUANTIZERS[kind]
    return kind()
