"""A moving average of the weights that is the network itself until its first update."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities import rank_zero_info


class MovingAverage(EMAWeightAveraging):
    """Lightning's EMAWeightAveraging, whose average follows the network up to its first update.

    Lightning's own begins with a copy of the untrained network: a run that ends, validates or is saved before
    `update_starting_at_step` would show and export that copy. Its arguments are those of Lightning's callback.
    """

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook; one line says that there is no average."""
        if self._follow(pl_module):
            rank_zero_info("the run ended before the first update of its moving average: weights are the last step's")
        super().on_train_end(trainer, pl_module)

    def _follow(self, pl_module: L.LightningModule) -> bool:
        """Whether there was no update so far; the average then takes over the network's numbers."""
        average = self._average_model
        if average is None or int(average.n_averaged) > 0:
            return False
        average.module.load_state_dict(pl_module.state_dict())
        return True
