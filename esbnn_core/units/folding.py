"""The affine of a unit's exact sum: layer scale, bias and BatchNorm as one factor and one offset per channel."""

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esbnn_core.layers.forwards import runs_as


def fold_norm(
    scale: Tensor | None, bias: Tensor | None, norm: nn.Module, copies: int
) -> tuple[Tensor | None, Tensor | None]:
    """Scale and bias (copies*O,) of the exact sum: those of the layer (O,), tiled, with a BatchNorm in eval folded in.

    Outside training the latent unit and the packed unit both compute sum * scale + bias, from the same two vectors in
    the same order. Folding further, into the sign's threshold, would change signs at ties.

    Args:
        scale: of the layer (O,), None for 1.
        bias: of the layer (O,), None for 0.
        norm: BatchNorm in eval, or nn.Identity.
        copies: how often the layer's output is tiled.

    Returns:
        Scale and bias (copies*O,); None for 1 and 0.
    """
    scale = scale if scale is None or copies == 1 else scale.repeat(copies)
    bias = bias if bias is None or copies == 1 else bias.repeat(copies)
    if not is_batch_norm(norm):
        return scale, bias
    assert norm.running_mean is not None and norm.running_var is not None
    factor = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    centre = norm.running_mean if bias is None else norm.running_mean - bias
    offset = -centre * factor if norm.bias is None else norm.bias - centre * factor
    return factor if scale is None else scale * factor, offset


def folds(norm: nn.Module) -> bool:
    """Whether the norm is an affine map in its present mode: none, or a BatchNorm in eval with running statistics."""
    if runs_as(norm, nn.Identity):
        return True
    return is_batch_norm(norm) and not norm.training and norm.running_mean is not None


def is_batch_norm(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether it is a BatchNorm of torch's, 1d, 2d or Sync, and none that does more, as timm's BatchNormAct2d."""
    return runs_as(norm, _BatchNorm, nn.SyncBatchNorm)
