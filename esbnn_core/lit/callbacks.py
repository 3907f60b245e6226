"""Callbacks of all tasks: reseeding, quantizer schedules, flips of latent weights, export of safetensors."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from esbnn_core.checkpoint.format import load_state
from esbnn_core.checkpoint.run_file import read_run
from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import ReCU, Temperature
from esbnn_core.lit.data import seed_everything_at
from esbnn_core.lit.export import validation_metrics, write_weights


class EpochSeed(Callback):
    """Reseeds every global generator, from (seed, epoch, rank) at each epoch start and with the batch before each step.

    A resumed run then draws what the uninterrupted one drew (dropout, noise), also in the middle of an epoch. Lightning
    alone does not promise that.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        seed_everything_at(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook."""
        seed_everything_at(self.seed, trainer.current_epoch, trainer.global_rank, batch_idx)


class TemperatureSchedule(Callback):
    """Sets the temperature of BNext's weights to factor^epoch at every epoch start: sign mode from epoch 153 at 0.9.

    It depends on the epoch alone, so a resumed run has the same. Differs from the paper's ES script, whose schedule
    never reaches its own layers (papers.md#es-quirk-1).
    """

    def __init__(self, factor: float = 0.9) -> None:
        if not 0 < factor < 1:
            raise InputError(f"factor must be a number between 0 and 1, got {factor}: BNext's recipe has 0.9")
        self.factor = factor

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        temperature = self.factor**trainer.current_epoch
        for _, layer in binary_layers(pl_module):
            if isinstance(layer.quantizer, Temperature):
                layer.quantizer.temperature.fill_(temperature)
        pl_module.log("temperature", temperature)


class ReCUSchedule(Callback):
    """Sets ReCU's tau at every epoch start: A * exp(e / E) + B, from `start` up to `end` (papers.md#recu).

    It depends on the epoch and the length of the run alone, so a resumed run has the same.
    """

    def __init__(self, start: float = 0.85, end: float = 0.99) -> None:
        if not 0.5 <= start <= end < 1:
            raise InputError(
                f"start and end must be 0.5 <= start <= end < 1, got {start} and {end}: ReCU's recipe has 0.85 and 0.99"
            )
        self.start, self.end = start, end

    def tau(self, epoch: int, epochs: int) -> float:
        """tau of an epoch, counted from 0, in a run of `epochs`."""
        a = (self.end - self.start) / (math.e - 1)
        return a * math.exp(epoch / epochs) + self.start - a

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        if not trainer.max_epochs or trainer.max_epochs < 0:
            raise InputError("the length of a run with ReCUSchedule must be given in epochs: set trainer.max_epochs")
        tau = self.tau(trainer.current_epoch, trainer.max_epochs)
        for _, layer in binary_layers(pl_module):
            if isinstance(layer.quantizer, ReCU):
                layer.quantizer.tau.fill_(tau)
        pl_module.log("recu_tau", tau)


class FlipRatio(Callback):
    """Logs the share of weights whose sign changed over the epoch: flip/<layer> of a binary layer, and flip/mean."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    @staticmethod
    @torch.no_grad()
    def signs(model: nn.Module) -> dict[str, Tensor]:
        """Boolean signs of the weights as the convolutions see them, by layer name."""
        return {name: layer.quantizer.binary(layer.filters) >= 0 for name, layer in binary_layers(model)}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        self._before = self.signs(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        after = self.signs(pl_module)
        ratios = {name: (after[name] != before).float().mean() for name, before in self._before.items()}
        if not ratios:
            return
        weights = torch.tensor([float(after[name].numel()) for name in ratios])
        values = torch.stack([ratio.cpu() for ratio in ratios.values()])
        pl_module.log_dict({f"flip/{name}": ratio for name, ratio in ratios.items()})
        pl_module.log("flip/mean", (values * weights).sum() / weights.sum(), prog_bar=True)


Which = Literal["last", "best"]


def run_folder(trainer: L.Trainer, directory: str | None) -> Path:
    """Where a callback writes: `directory`, else the run's folder; of a dry run (fast_dev_run) always the latter."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return Path(trainer.default_root_dir)
    return Path(directory or trainer.log_dir or trainer.default_root_dir)


def took_steps(trainer: L.Trainer, folder: Path) -> bool:
    """Whether training changed anything; if it did not, the files of a finished run stay, and a line says so."""
    if trainer.global_step > 0:
        return True
    rank_zero_info(
        f"{folder}: no training step was taken (max_epochs, max_time, limit_train_batches), nothing is exported"
    )
    return False


class ExportWeights(Callback):
    """Writes weights.safetensors (latent) and packed.safetensors of the module's `network` at the end of fit.

    Nothing is written where no step was taken.

    Packing needs weights in sign mode: otherwise only the latent file is written, and one line says so. Files of a run
    in half precision hold float32, with the values that training left.

    Args:
        directory: default the trainer's log directory.
        which: "last", the network as training left it, or "best", that of the best file of the run's ModelCheckpoint.

    Raises:
        InputError: "best" without a ModelCheckpoint that monitors a metric (before training), or without a file of it
            at the end.
    """

    def __init__(self, directory: str | None = None, which: Which = "last") -> None:
        check_choice("which of ExportWeights", which, get_args(Which))
        self.directory, self.which = directory, which

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning's hook."""
        if stage == "fit" and self.which == "best" and self._find_checkpoint(trainer) is None:
            raise InputError(
                "ExportWeights(which='best') needs a ModelCheckpoint that monitors a metric, got none: add one with "
                "monitor, or choose which='last'"
            )

    @staticmethod
    def _find_checkpoint(trainer: L.Trainer) -> ModelCheckpoint | None:
        """The first one that monitors a metric."""
        found = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
        return found[0] if found else None

    def _load_best(self, trainer: L.Trainer, network: nn.Module) -> tuple[nn.Module, Mapping[str, float]]:
        """A copy of the network with the best file's tensors, and the metrics of that file."""
        checkpoint = self._find_checkpoint(trainer)
        assert checkpoint is not None
        path = checkpoint.best_model_path
        if not path or not Path(path).is_file():
            raise InputError(
                f"ModelCheckpoint has no best file by {checkpoint.monitor} to export ({path or 'none was written'}): "
                f"let validation run, or choose ExportWeights(which='last')"
            )
        run = read_run(path)
        best = copy.deepcopy(network).cpu()
        load_state(best, run.tensors, path)
        score = checkpoint.best_model_score
        return best, run.metric or ({} if score is None else {str(checkpoint.monitor): float(score)})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook; the first process writes."""
        # every process asks: log_dir is broadcast from the first one
        folder = run_folder(trainer, self.directory)
        if not trainer.is_global_zero or not took_steps(trainer, folder):
            return
        network: Any = pl_module.network
        metric: Mapping[str, float] = validation_metrics(trainer)
        if self.which == "best":
            network, metric = self._load_best(trainer, network)
        rank_zero_info(f"{folder}: {', '.join(write_weights(network, folder, metric))}")
