"""The callback that lets thresholds and norm weights start apart when a run of any task begins."""

from dataclasses import replace

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from esbnn_core.errors import InputError
from esbnn_core.units.start import Gains, Over, Start, start_apart_


class StartApart(Callback):
    """Calls start_apart_ on the network when `fit` begins, in any task.

    A run that goes on from a checkpoint, or starts from a file of weights, keeps their thresholds; one line says so.

    Args:
        thresholds: as Start, like those that follow.
        over: what the thresholds are spread over.
        deviations: thresholds in deviations of each layer's input on the first batch.
        gains: of the norms' weights.
        seed: of what is drawn; default from torch's global generator, that is from seed_everything. The same in all
            processes.

    Raises:
        InputError: as Start.
    """

    def __init__(
        self,
        thresholds: float = 0.5,
        over: Over = "copies",
        deviations: bool = False,
        gains: Gains = "ones",
        seed: int | None = None,
    ) -> None:
        self.start, self.draws_seed = Start(thresholds, over, deviations, gains, seed or 0), seed is None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        if trainer.ckpt_path is not None:
            return
        weights = getattr(pl_module, "started_from", None)
        if weights is not None:
            rank_zero_info(f"StartApart changes nothing: thresholds are those of {weights}, which the run starts from")
            return
        if trainer.global_step > 0:
            rank_zero_info(f"StartApart changes nothing: the network was trained for {trainer.global_step:,} steps")
            return
        if self.start.deviations and getattr(pl_module, "compile_backend", None):
            raise InputError(
                "deviations of StartApart must be false with model.compile_backend, got true: a compiled network has "
                "no place to measure its first batch, leave the compiler out"
            )
        start = self.start
        if self.draws_seed:
            drawn = int(torch.randint(2**31, ()))
            start = replace(start, seed=trainer.strategy.broadcast(drawn))
        start_apart_(pl_module, start)
