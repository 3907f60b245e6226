"""The base of the tasks' Lightning modules: optimizer and schedule, and what may be trained or evaluated."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from esbnn_core.errors import InputError, check_output_folder
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule
from esbnn_core.packed.layers import is_packed
from esbnn_core.training.latent_clip import attach_latent_clip


class TaskModule(L.LightningModule):
    """A LightningModule around one `network`.

    Attributes:
        network: set by the subclass, as the next five are.
        make_optimizer: parameters -> optimizer.
        make_scheduler: optimizer -> scheduler, or None.
        lr_interval: "step" or "epoch", how often the schedule advances.
        decay: weight decay by kind of parameter, or None.
        predictions: folder that predict writes, or None for predictions in the run's own.
        monitor: validation metric of the best checkpoint, the higher the better; "" for none.
        begun: whether there are weights to evaluate.
        what: the network, in messages.
    """

    network: Any
    make_optimizer: OptimizerCallable
    make_scheduler: LRSchedulerCallable | None
    lr_interval: str
    decay: DecayRule | None
    predictions: str | None = None
    monitor = ""
    begun = True
    what = "network"

    def check_latent(self) -> None:
        """Raise InputError for a packed network, which cannot be trained."""
        if is_packed(self.network):
            raise InputError(
                f"the {self.what} is packed and holds no latent weights to train: give the latent file as weights"
            )

    def check_fit(self, resumes: bool) -> None:
        """Raise InputError for a packed network; the command line calls it before it writes a file."""
        self.check_latent()

    def check_evaluation(self, run: str) -> None:
        """Raise InputError unless there are weights; the command line calls it before it writes a file."""
        self._check_begun(self.begun, run)

    def _check_begun(self, begun: bool, run: str) -> None:
        if not begun:
            raise InputError(
                f"there are no trained weights to {run}: give a file as model.weights or a run's checkpoint as "
                f"ckpt_path"
            )

    def locate_predictions(self, trainer: L.Trainer) -> Path:
        """The folder that predict writes."""
        return Path(self.predictions or Path(trainer.default_root_dir) / "predictions")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: the weights of a run are there."""
        self.begun = True

    def on_validation_start(self) -> None:
        """Lightning's hook."""
        self._check_begun(self.begun, "validate")

    def on_test_start(self) -> None:
        """Lightning's hook."""
        self._check_begun(self.begun, "test")

    def on_predict_start(self) -> None:
        """Lightning's hook."""
        self._check_begun(self.begun, "predict")
        check_output_folder(self.locate_predictions(self.trainer), "model.predictions")

    def on_train_start(self) -> None:
        """Bind a schedule that advances by steps to their number.

        Not in configure_optimizers: the number comes from the loader, and a loader made before the checkpoint is read
        does not learn where in the epoch the run stopped.
        """
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ProgressLR) and self.lr_interval == "step":
            scheduler.bind(int(self.trainer.estimated_stepping_batches))

    def configure_optimizers(self) -> Any:
        """Make the optimizer with the latent-weight clip, and bind a schedule that advances by epochs to their number.

        Parameters that no gradient reaches are included and stay as they are.
        """
        self.check_latent()
        whole = list(self.network.parameters())
        optimizer = self.make_optimizer(whole if self.decay is None else self.decay.groups(self.network))
        attach_latent_clip(optimizer, self.network)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        if isinstance(scheduler, ProgressLR) and self.lr_interval == "epoch":
            scheduler.bind(self.trainer.max_epochs or 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}
