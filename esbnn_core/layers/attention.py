"""Parts of BinaryViT's attention: 1-bit probabilities, products of binary tensors, LayerScale.

papers.md#binaryvit-attention
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.layers.activations import per_channel


class _Probabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(p, threshold)
        return (p / threshold).round().clamp(0, 1) * threshold

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        p, threshold = ctx.saved_tensors
        ratio = p / threshold
        inside = (ratio >= 0) & (ratio <= 1)
        slope = torch.where(inside, ratio.round() - ratio, (ratio > 1).to(ratio.dtype))
        return grad * inside, (grad * slope).sum().reshape(threshold.shape)


def binarize_probabilities(p: Tensor, threshold: Tensor) -> Tensor:
    """clip(round(p / c), 0, 1) * c: probabilities become 0 or c, halves round to even (papers.md#binaryvit-attention).

    The gradient of p passes where 0 <= p/c <= 1. That of c is round(p/c) - p/c there and 1 above.

    Args:
        p: attention probabilities, any shape.
        threshold: the learned scalar c (0-d), above 0.
    """
    out: Tensor = _Probabilities.apply(p, threshold)
    return out


class BinarySoftmax(nn.Module):
    """Softmax over the last dimension, binarised to {0, c} with one learned c that starts at 0.005.

    Outside training the output is {0, 1}, and the caller multiplies its exact sums by `level(scores)`, which is c.

    Args:
        relative: c is the learned threshold, which starts at 1, over the number S of keys: the start suits any S.
            Differs from the paper: its 0.005 is 1/S for 200 keys; for 20 keys no query or key would get a gradient.
    """

    LOWEST = 1e-6

    def __init__(self, relative: bool = False) -> None:
        super().__init__()
        self.relative = relative
        self.threshold = nn.Parameter(torch.tensor(1.0 if relative else 0.005))

    def level(self, scores: Tensor) -> Tensor:
        """The value c (0-d) of a probability that is not 0, for scores (..., S)."""
        return self.threshold / scores.shape[-1] if self.relative else self.threshold

    def forward(self, scores: Tensor) -> Tensor:
        level = self.level(scores)
        p = binarize_probabilities(F.softmax(scores, dim=-1), level)
        return p if self.training else p / level

    def project_(self) -> None:
        """Keep the threshold above 0, so that p/c has a value.

        The optimizer hook of esbnn_core.training.latent_clip calls it after every step.
        """
        self.threshold.clamp_(min=self.LOWEST)


class BinaryMatmul(nn.Module):
    """a @ b of two binary tensors: (..., M, K) x (..., K, N) -> (..., M, N). A module, so that counting sees it.

    Outside training autocast does not make it narrower than float32: the sums stay exact.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        kind = a.device.type
        if not self.training and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return a.float() @ b.float()
        return a @ b


class LayerScale(nn.Module):
    """alpha * x + move, per channel of the last dimension (BinaryViT's own form, papers.md#binaryvit-attention).

    Args:
        channels: C.
        alpha: start value of alpha; move starts at 0.
    """

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((channels,), alpha))
        self.move = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * per_channel(self.alpha, x, -1) + per_channel(self.move, x, -1)
