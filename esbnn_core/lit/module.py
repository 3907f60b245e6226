"""The base of the tasks' Lightning modules: optimizer and schedule, what may be trained or evaluated, and its files."""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau, instantiate_module
from lightning.pytorch.trainer.states import TrainerFn

from esbnn_core.checkpoint.format import load_state, source_commit
from esbnn_core.checkpoint.run_file import NETWORK, OPTIONS, RUN, RunFile, check_options, read_run
from esbnn_core.errors import InputError, check_output_folder
from esbnn_core.lit.accumulation import GRADIENTS, note_gradients, take_gradients
from esbnn_core.lit.export import check_new_folder, validation_metrics, write_folder, write_weights
from esbnn_core.lit.malloc import keeps_freed_memory
from esbnn_core.lit.optimizer_state import OPTIMIZER, check_resumed, follow_layouts_, name_of
from esbnn_core.lit.precision import is_wide, set_precision_, warn_of_rounding, widen_
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.weight_decay import DecayRule
from esbnn_core.packed.layers import is_packed
from esbnn_core.training.latent_clip import attach_latent_clip
from esbnn_core.training.on_bits import TrainOnBits, train_on_bits_

OnBits: TypeAlias = bool | Literal["bfloat16"]
"""Whether a task trains on bits, and with which gradients."""


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
        started_from: file of trained weights that the run starts from, or None.
        what: the network, in messages.
        start_files: options that name files to start from, which a checkpoint replaces.
        memory_format: of the network's weights and images, see lay_out.
    """

    network: Any
    make_optimizer: OptimizerCallable
    make_scheduler: LRSchedulerCallable | None
    lr_interval: str
    decay: DecayRule | None
    predictions: str | None = None
    monitor = ""
    begun = True
    started_from: str | None = None
    what = "network"
    start_files: ClassVar[tuple[str, ...]] = ("weights",)
    memory_format = torch.contiguous_format
    _options: Mapping[str, Any] | None = None
    _gradients: Mapping[str, Any] | None = None
    _rate_was_set = False
    _resumed: Mapping[str, Any] | None = None

    def note_options(self, options: Mapping[str, Any]) -> None:
        """Let every checkpoint name the options that built the module; the command line calls it.

        Args:
            options: plain values, as a config file has them. load_from_checkpoint and `esbnn export` build the module
                of them again, without the files that it started from.
        """
        self._options = {**options, **dict.fromkeys(self.start_files)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: note the module's class, its options and the metrics of the last validation."""
        kind = type(self)
        noted = {"module": f"{kind.__module__}.{kind.__qualname__}", "metric": validation_metrics(self.trainer)}
        checkpoint[RUN] = {**noted, "commit": _commit_at_start()}
        note_gradients(self, checkpoint)
        if self.trainer.optimizers:
            checkpoint[OPTIMIZER] = name_of(self.trainer.optimizers[0])
        if self._options is not None:
            checkpoint[OPTIONS] = {**self._options, "_instantiator": "lightning.pytorch.cli.instantiate_module"}

    @classmethod
    def export_run(cls, source: str | Path | RunFile, folder: str | Path) -> list[str]:
        """Write the network of a run's checkpoint as the files that its callbacks would have written at that epoch.

        Args:
            source: a checkpoint of a run that the task's command line started, e.g. best.ckpt, or what read_run read.
            folder: to make: weights.safetensors, packed.safetensors where the weights are signs, and what else the task
                exports. All files are written or none.

        Returns:
            a phrase on each file.

        Raises:
            InputError: a file that is not such a checkpoint, options that build another network, or a folder that holds
                something.
        """
        run = source if isinstance(source, RunFile) else read_run(source)
        folder, written = Path(folder), list[str]()
        check_options(run)
        check_new_folder(folder)
        module = cls.from_options(run)
        load_state(widen_(module.network, run.tensors), run.tensors, str(run.path))
        write_folder(folder, lambda place: written.extend(module.write_files(place, run.metric, run.commit)))
        return written

    @classmethod
    def from_options(cls, run: RunFile) -> "TaskModule":
        """A new module by the options in a checkpoint. Raises InputError for options that do not build one."""
        try:
            return instantiate_module(cls, dict(run.options))
        except InputError:
            raise
        except Exception as error:  # the options are whatever the file says
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"options in checkpoint {run.path} cannot build its {cls.what} ({reason}): export it with the version "
                f"that wrote it"
            ) from error

    def write_files(self, folder: Path, metric: Mapping[str, float], commit: str | None = None) -> list[str]:
        """Write everything that the task exports of its network; returns a phrase on each file.

        Args:
            folder: as write_weights's, like the rest.
            metric: of the last validation.
            commit: of the source tree that trained.
        """
        return write_weights(self.network, folder, metric, commit)

    def train_on_bits(self, how: OnBits) -> None:
        """Let a latent network train on bits, where `how` says so; a packed one can be evaluated, and fit refuses it.

        Args:
            how: True, or "bfloat16" to round the gradients before backward's convolutions (TrainOnBits).
        """
        if how and not is_packed(self.network):
            train_on_bits_(self.network, TrainOnBits(gradient_dtype=torch.bfloat16 if how == "bfloat16" else None))

    def lay_out(self, channels_last: bool) -> None:
        """Keep the network's weights in this memory format; the subclass gives its images the same.

        Layers on bits and torch's convolutions then hand each other maps without copies.
        """
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, which Lightning's LearningRateFinder reads and sets.

        It is also where a schedule starts from. Parameters to which `decay` gives a rate have this multiple of it, but
        in the finder's own sweep, which has one rate for all. Without a trainer it is nan.
        """
        optimizers = [] if self._trainer is None else self.trainer.optimizers
        return float(optimizers[0].param_groups[-1]["lr"]) if optimizers else math.nan

    @lr.setter
    def lr(self, value: float) -> None:
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = value
            if self.decay is not None:
                self.decay.scale_rates(optimizer)
                self._rate_was_set = True
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        for config in self.trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [group["lr"] for group in config.scheduler.optimizer.param_groups]

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

    @property
    def prediction_folder(self) -> Path:
        """The folder that predict writes."""
        return Path(self.predictions or Path(self.trainer.default_root_dir) / "predictions")

    def configure_model(self) -> None:
        """Lightning's hook, before a checkpoint is read and the network gets the precision of the run."""
        if self._trainer is not None:  # load_from_checkpoint calls it too
            keeps_freed_memory(self.trainer)  # the command line did already, a Trainer of the user's own did not
            set_precision_(self.network, self.trainer.precision)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: the weights of a run are there."""
        self.begun, self._gradients = True, checkpoint.get(GRADIENTS)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.optimizers:
            self._resumed = {key: checkpoint[key] for key in ("optimizer_states", OPTIMIZER) if key in checkpoint}
        state = checkpoint["state_dict"].items()
        tensors = {name: tensor for name, tensor in state if name.startswith(NETWORK)}
        if self._trainer is None:  # load_from_checkpoint
            widen_(self.network, tensors)
        elif is_wide(tensors) and not is_wide(self.network.state_dict()):
            warn_of_rounding(self.trainer.precision)

    def on_validation_start(self) -> None:
        """Lightning's hook; a validation of a training needs no weights to start from."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_begun(self.begun, "validate")

    def on_test_start(self) -> None:
        """Lightning's hook."""
        self._check_begun(self.begun, "test")

    def on_predict_start(self) -> None:
        """Lightning's hook."""
        self._check_begun(self.begun, "predict")
        check_output_folder(self.prediction_folder, "model.predictions")

    def on_train_start(self) -> None:
        """Go on with gradients of a checkpoint, and bind a schedule that advances by steps to their number.

        Not in configure_optimizers: the number comes from the loader, and a loader made before the checkpoint is read
        does not learn where in the epoch the run stopped.
        """
        if self._gradients is not None:
            take_gradients(self, self._gradients)
            self._gradients = None
        for optimizer in self.trainer.optimizers:
            follow_layouts_(optimizer)
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ProgressLR) and self.lr_interval == "step":
            steps = self.trainer.estimated_stepping_batches
            if math.isinf(steps):
                raise InputError(
                    "the length of a run with ProgressLR must be given, got max_time alone: set trainer.max_epochs or "
                    "trainer.max_steps"
                )
            scheduler.bind(int(steps))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give the kind of `decay` its rate again where a learning-rate finder has set one for all behind `lr`."""
        if self._rate_was_set and self.decay is not None:
            self._rate_was_set = False
            for optimizer in self.trainer.optimizers:
                self.decay.keep_rate(optimizer)

    def configure_optimizers(self) -> Any:
        """Make the optimizer with the latent-weight clip, and bind a schedule that advances by epochs to their number.

        Parameters that no gradient reaches are included and stay as they are.
        """
        self.check_latent()
        whole = list(self.network.parameters())
        optimizer = self.make_optimizer(whole if self.decay is None else self.decay.groups(self.network))
        if self.decay is not None:
            self.decay.scale_rates(optimizer)
        attach_latent_clip(optimizer, self.network)
        scheduler = None if self.make_scheduler is None else self.make_scheduler(optimizer)
        if self._resumed is not None:
            check_resumed(self._resumed, optimizer, scheduler is not None)
            self._resumed = None
        if scheduler is None:
            return optimizer
        if self.decay is not None:
            self.decay.check_rates(optimizer, scheduler)
        if isinstance(scheduler, ProgressLR) and self.lr_interval == "epoch":
            epochs = self.trainer.max_epochs
            if epochs is not None and epochs < 0:
                raise InputError(
                    "the length of a run with ProgressLR and lr_interval epoch must be given in epochs, got steps or "
                    "time alone: set trainer.max_epochs"
                )
            scheduler.bind(epochs or 1)
        schedule = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            schedule["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}


@cache
def _commit_at_start() -> str:
    """The commit of the code that runs; asked once, because the source tree may move on during a run."""
    return source_commit()
