"""sign with its straight-through estimators, and the weight quantizers.

Everywhere sign(0) = +1, in training and on packed bits alike. Differs from the paper: the original code uses
torch.sign, whose value at 0 is 0, a third value that one bit cannot hold (papers.md#sign-of-zero).
"""

import math
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError

STE = Literal["poly2", "clip", "identity", "tent"]


def hard_sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1 (NaN gives -1), in x's dtype; no gradient of its own."""
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)


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
            return grad * (x.abs() <= ctx.clip), None, None
        # poly2 is 2+2x on [-1,0) and 2-2x on [0,1), which is the tent 2-2|x| cut at zero
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grad), None, None


def sign_ste(x: Tensor, ste: STE = "poly2", clip: float = 1.0) -> Tensor:
    """sign(x) whose backward is a straight-through estimator (papers.md#estimators).

    Args:
        x: any shape, floating dtype.
        ste: derivative used in backward. "poly2": 2-2|x| inside [-1, 1], 0 outside (Bi-Real, ReActNet).
            "clip": 1 on [-clip, clip], ends included. "identity": 1.
            "tent": as poly2, for a variance-normalised x (ReCU).
        clip: half width of "clip" (1 for XNOR-style weights, 1.5 for BNext activations).
    """
    if ste not in get_args(STE):
        raise InputError(f"STE {ste!r} is not known, one of {', '.join(get_args(STE))} was expected")
    out: Tensor = _Sign.apply(x, ste, clip)
    return out


class _StraightThrough(torch.autograd.Function):
    """Forward gives `value`, backward hands the gradient to `x` unchanged."""

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
    """From a latent weight (O, I, *k) to what the layer convolves with, and a scale for its output.

    The layer convolves with `binary(weight)` and multiplies the result by `scale(weight)`, never the weight itself:
    sums of +-1 products are exact in float32 below 2^24, so the latent and the packed path agree bit for bit.
    Subclasses override one or both methods.
    """

    precision = 1
    """Bits per weight; counting and packing read it."""
    latent_clip: float | None = None
    """The optimizer hook keeps latent weights inside +-latent_clip (see esbnn_core.training.latent_clip)."""
    to_sign_mode = ""
    """Why `sign_mode` may be False and what changes that, for errors."""

    def __init__(self, ste: STE = "clip", clip: float = 1.0) -> None:
        super().__init__()
        self.ste: STE = ste
        self.clip = clip

    def signed(self, weight: Tensor) -> Tensor:
        """What the sign is taken of, same shape: the weight itself, or centred."""
        return weight

    def binary(self, weight: Tensor) -> Tensor:
        """Weight of the convolution, same shape; exactly +-1 in sign mode."""
        return sign_ste(self.signed(weight), self.ste, self.clip)

    def scale(self, weight: Tensor) -> Tensor | None:
        """Scale (O,) of the layer's output, or None."""
        return None

    def sign_mode(self) -> bool:
        """Whether `binary` gives exactly +-1, which packing needs."""
        return True

    def extra_repr(self) -> str:
        return f"ste={self.ste}"


class PlainSign(WeightQuantizer):
    """sign(W), no scale."""

    def __init__(self, ste: STE = "clip", clip: float = 1.0, latent_clip: float | None = None) -> None:
        super().__init__(ste, clip)
        self.latent_clip = latent_clip
        if ste == "identity" and latent_clip is None:
            warnings.warn(
                "a latent weight with the identity STE and no latent_clip can grow without bound: pass latent_clip",
                stacklevel=2,
            )


class RealWeights(WeightQuantizer):
    """The latent weight itself, no sign and no scale: step 1 of the two-step recipes (papers.md#two-steps).

    It has no state, so a network with it has the tensors of the binary network
    (esbnn_core.transforms.real_weights.real_weights_).
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
    """alpha * sign(W) with alpha_o = mean |W| of filter o (XNOR-Net; Bi-Real, ReActNet, BiDet;
    papers.md#weight-quantizers).

    Args:
        ste: of the sign. detach_scale: no gradient through alpha (ReActNet) or with it (BiDet).
        centred: take the sign of W minus its filter mean, alpha of the uncentred W (BinaryViT linear layers).
        of_layer: one alpha, of all filters together (DoReFa-Net).
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
    """clamp(W/T, -1, 1), and sign(W) once T < sign_below; identity STE (BNext, papers.md#bnext-temperature; 1e-5 in
    BNext-18, papers.md#bnext-18).

    `temperature` is a buffer (1,) that starts at 1; an epoch-end hook multiplies it (0.9 an epoch reaches sign mode at
    epoch 153). The latent weight is kept inside +-1.5 by the optimizer hook, not by a write in forward.
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
            # chosen on the device: reading the temperature here would wait for the GPU at every forward
            value = torch.where(self.temperature < self.sign_below, hard_sign(weight), clamped)
        out: Tensor = _StraightThrough.apply(weight, value)
        return out

    def sign_mode(self) -> bool:
        return bool(self.temperature.item() < self.sign_below)


class ReCU(WeightQuantizer):
    """Standardised, rectified-clamped sign of ReCU: sign(clamp(w1, -Q, Q)), Q = -mean|w1| * ln(2 - 2 tau).

    Source: papers.md#recu.

    `tau` is ReCU's own quantile parameter, a buffer (1,) set at every epoch start, not the expansion factor. It steers
    the gradient alone (zero where clamped); the sign does not depend on it.
    """

    tau: Tensor

    def __init__(self) -> None:
        super().__init__("identity")
        self.register_buffer("tau", torch.full((1,), 0.85))

    def signed(self, weight: Tensor) -> Tensor:
        return centre(weight)

    def binary(self, weight: Tensor) -> Tensor:
        centred = self.signed(weight)
        if not (self.training and torch.is_grad_enabled()):
            return sign_ste(centred, "identity")  # neither the deviation nor the clamp can turn a sign
        variance = centred.flatten(1).var(1).view(-1, *[1] * (weight.dim() - 1))
        w1 = centred * (2 * math.sqrt(2)) / (variance + 1e-5).sqrt()
        # a constant of the step: a clamped weight gets no gradient, not even through the mean (tau = 1: no clamp)
        bound = -w1.detach().abs().mean() * torch.log(2 - 2 * self.tau)
        return sign_ste(torch.minimum(torch.maximum(w1, -bound), bound), "identity")


class Libra(WeightQuantizer):
    """IR-Net's balanced weights (Libra-PB): the sign of the standardised W, and a power of two as scale.

    w = (W - mean) / deviation of each filter; binary sign(w), scale 2^round(log2(mean |w|)), which a shift of bits can
    multiply by. Differs from the paper: the estimator is "clip" at w throughout, theirs sharpens over the epochs.
    """

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


WEIGHT_QUANTIZERS = (
    *("sign", "absmean", "absmean_attached", "absmean_centred", "absmean_layer"),
    *("libra", "temperature", "recu"),
)


def make_weight_quantizer(kind: "str | WeightQuantizer") -> WeightQuantizer:
    """A weight quantizer by name, or the instance given.

    "sign": PlainSign with clip STE. "absmean": alpha detached (ReActNet). "absmean_attached": gradient through alpha,
    identity STE (BiDet). "absmean_centred": rows centred (BinaryViT). "absmean_layer": one alpha a layer, identity STE
    (DoReFa-Net). "libra": IR-Net. "temperature": BNext. "recu": ReCU.
    """
    if isinstance(kind, WeightQuantizer):
        return kind
    if kind == "sign":
        return PlainSign()
    if kind == "absmean":
        return AbsMean()
    if kind == "absmean_attached":
        return AbsMean(ste="identity", detach_scale=False)
    if kind == "absmean_centred":
        return AbsMean(centred=True)
    if kind == "absmean_layer":
        return AbsMean(ste="identity", of_layer=True)
    if kind == "libra":
        return Libra()
    if kind == "temperature":
        return Temperature()
    if kind == "recu":
        return ReCU()
    raise InputError(f"weight quantizer {kind!r} is not known, one of {', '.join(WEIGHT_QUANTIZERS)} was expected")
