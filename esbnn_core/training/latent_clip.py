"""Latent-weight clipping as an optimizer hook, in one place and outside of forward."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.hooks import has_bounded_parameters


def clip_latent_weights_(model: nn.Module) -> nn.Module:
    """Clamp in place every latent weight whose quantizer has a `latent_clip`; returns the model.

    Modules with the hook `project_` (esbnn_core.layers.hooks) put their own parameters back into their range.
    """
    with torch.no_grad():
        for module in model.modules():
            if has_bounded_parameters(module):
                module.project_()
            if isinstance(module, BinaryLayer) and module.quantizer.latent_clip is not None:
                module.weight.clamp_(-module.quantizer.latent_clip, module.quantizer.latent_clip)
    return model


def attach_latent_clip(optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
    """Clip after every step of `optimizer`; the handle removes the hook.

    The originals clamp `weight.data` at the start of every training forward (papers.md#bnext-temperature). That gives
    the same values one step later, but breaks autograd's version counter.
    """

    def clip(*_: object) -> None:
        clip_latent_weights_(model)

    return optimizer.register_step_post_hook(clip)
