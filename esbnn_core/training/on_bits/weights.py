"""What a product on bits takes of a layer's latent weight: its signs, the estimator of their gradient, and the scale.

Most quantizers are a sign with a straight-through estimator: their bits are packed from the latent weight itself, and
the estimator is applied to the gradient that backward has computed, so that no +-1 copy of the weight is made.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esbnn_core.kernels.training import steps_of
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.quantizers import AbsMean, WeightQuantizer
from esbnn_core.training.on_bits.signs import SignRule, estimator_

AS_IT_IS = SignRule("identity", 1.0, False)
RULES = ("clip", "identity", "poly2")


class Weight(NamedTuple):
    """The weight of a layer's product.

    Attributes:
        values: (O, I, KH, KW) whose signs are the weight; the gradient goes to them.
        rule: the estimator of these signs.
    """

    values: Tensor
    rule: SignRule


def weight_of(layer: BinaryLayer) -> Weight:
    """The weight of a layer in sign mode."""
    quantizer, filters = layer.quantizer, layer.filters
    filters = filters if filters.dim() == 4 else filters[:, :, None, None]
    if type(quantizer).binary is WeightQuantizer.binary and quantizer.ste in RULES:
        return Weight(quantizer.signed(filters), SignRule(quantizer.ste, quantizer.clip, False))
    return Weight(quantizer.binary(filters), AS_IT_IS)


def output_scale(layer: BinaryLayer) -> Tensor | None:
    """As the layer's own, without the copy that this makes of a channels_last weight.

    A mean reads the weights of a filter in any order, here in that of memory.
    """
    filters = layer.filters
    if type(layer.quantizer) is not AbsMean or not _channels_last(filters):
        return layer.output_scale()
    alpha = layer.quantizer.scale(filters.permute(0, 2, 3, 1))
    return alpha if alpha is None or layer.learned_scale is None else alpha * layer.learned_scale


def through_weight(rule: SignRule, grad: Tensor, values: Tensor) -> Tensor:
    """From the gradient of the signs of `values` to that of the values, in their dtype.

    Args:
        rule: the estimator.
        grad: (O, I, KH, KW), as the backward of a convolution returns it; may be written over.
        values: likewise.
    """
    if rule.ste == "identity":
        return grad.to(values.dtype)
    last = _channels_last(values)  # a parameter's gradient has to have its layout in the end, so grad gets it here
    rows, of = ((t.permute(0, 2, 3, 1) if last else t).flatten(1) for t in (grad, values))
    done = steps_of(rows).estimator(rule.ste, rule.clip, rows, of, None, None, None, values.dtype, with_total=False)
    if done is None:
        return estimator_(rule, values.clone()).mul_(grad)
    out, _, height, width = values.shape
    return done[0].view(out, height, width, -1).permute(0, 3, 1, 2) if last else done[0].view(values.shape)


def _channels_last(values: Tensor) -> bool:
    return values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)
