"""Gradients that wait for their step (trainer.accumulate_grad_batches), kept in a checkpoint between two steps.

Lightning's checkpoint has none: a run that was saved between two steps would go on with a step of fewer batches.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

GRADIENTS = "esbnn_gradients"
"""Key of a run's checkpoint: how many batches have no step yet, of how many, and their gradients by parameter."""


def note_gradients(module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Put what waits for a step into the checkpoint; nothing where a step was just taken.

    A validation between two steps is a part of fit, and what it saves is from between two steps. Several processes have
    gradients of their own, of which a checkpoint holds none.
    """
    trainer, window = module.trainer, module.trainer.accumulate_grad_batches
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    waiting = progress.current.processed % window
    if trainer.state.fn != TrainerFn.FITTING or not waiting or progress.is_last_batch:
        return
    named = module.named_parameters() if trainer.world_size == 1 else []
    gradients = {name: p.grad.detach().cpu().clone() for name, p in named if p.grad is not None}
    checkpoint[GRADIENTS] = {"batches": waiting, "of": window, "gradients": gradients}


def take_gradients(module: L.LightningModule, noted: Mapping[str, Any]) -> None:
    """Give the parameters the gradients of a checkpoint, before the first batch of a resumed run.

    A run of another number of batches a step or of several processes cannot use them, and a warning says so.
    """
    gradients, trainer = noted["gradients"], module.trainer
    if noted["of"] != trainer.accumulate_grad_batches or trainer.world_size > 1 or not gradients:
        rank_zero_warn(
            f"the checkpoint is from between two steps: the gradients of {noted['batches']} batches of "
            f"{noted['of']} are lost, because they hold for one process and the same accumulate_grad_batches alone"
        )
        return
    for name, parameter in module.named_parameters():
        if name in gradients:
            parameter.grad = torch.empty_like(parameter).copy_(gradients[name])  # in the parameter's memory format
