"""The base of the tasks' Lightning modules: optimizer and schedule, and what may be trained or evaluated."""

from typing import Any

import lightning as L
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from esbnn_core.errors import InputError
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule
from esbnn_core.packed.layers import is_packed
from esbnn_core.training.latent_clip import attach_latent_clip


class TaskModule(L.LightningModule):
    """A LightningModule around one `network`.

    Attributes:
        network: set by the subclass, as the next four are.
        make_optimizer: parameters -> optimizer.
        make_scheduler: optimizer -> scheduler, or None.
        lr_interval: "step" or "epoch", how often the schedule advances.
        decay: weight decay by kind of parameter, or None.
        monitor: validation metric of the best checkpoint, the higher the better; "" for none.
        begun: whether there are weights to evaluate.
        what: the network, in messages.
    """

    network: Any
    make_optimizer: OptimizerCallable
    make_scheduler: LRSchedulerCallable | None
    lr_interval: str
    decay: DecayRule | None
    monitor = ""
    begun = True
    what = "network"

    def check_latent(self) -> None:
        """Raise InputError for a packed network, which cannot be trained."""
        if is_packed(self.network):
            raise InputError(
                f"the {self.what} is packed and holds no latent weights to train: give the latent file as weights"
            )

    def check_evaluation(self, run: str) -> None:
        """Raise InputError unless there are weights; the command line calls it before it writes a file."""
        if not self.begun:
            raise InputError(
                f"there are no trained weights to {run}: give a file as model.weights or a run's checkpoint as "
                f"ckpt_path"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: the weights of a run are there."""
        self.begun = True

    def on_validation_start(self) -> None:
        """Lightning's hook."""
        self.check_evaluation("validate")

    def on_test_start(self) -> None:
        """Lightning's hook."""
        self.check_evaluation("test")

    def on_predict_start(self) -> None:
        """Lightning's hook."""
        self.check_evaluation("predict")

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
