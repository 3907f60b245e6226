"""Callbacks of all tasks: reseeding, latent-weight flips, export of safetensors."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn

from esbnn_core.checkpoint import save_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.lit.data import seed_everything_at
from esbnn_core.quantizers import Temperature
from esbnn_core.release import pack_checkpoint
from esbnn_core.unit import binary_layers


class EpochSeed(Callback):
    """Reseed every global generator from (seed, epoch, rank) at the start of each training epoch.

    A resumed run then draws what the uninterrupted one drew (dropout, noise), which Lightning alone does not promise.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        seed_everything_at(self.seed, trainer.current_epoch, trainer.global_rank)


class TemperatureSchedule(Callback):
    """Set the temperature of BNext's weights to factor^epoch at every epoch start: sign mode from epoch 153 at 0.9.

    It depends on the epoch alone, so a resumed run has it right. Differs from the paper's ES script, whose schedule
    never reaches its own layers (spec 1.8-Q1).
    """

    def __init__(self, factor: float = 0.9) -> None:
        if not 0 < factor < 1:
            raise InputError(f"factor={factor} was given, a number between 0 and 1 was expected")
        self.factor = factor

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        temperature = self.factor**trainer.current_epoch
        for _, layer in binary_layers(pl_module):
            if isinstance(layer.quantizer, Temperature):
                layer.quantizer.temperature.fill_(temperature)
        pl_module.log("temperature", temperature)


class FlipRatio(Callback):
    """Log per binary layer the share of weights whose sign turned over the epoch: flip/<layer> and flip/mean."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    @staticmethod
    @torch.no_grad()
    def signs(model: nn.Module) -> dict[str, Tensor]:
        """Boolean signs of the weights as the convolutions see them, by layer name."""
        return {name: layer.quantizer.binary(layer.weight) >= 0 for name, layer in binary_layers(model)}

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


class ExportWeights(Callback):
    """At the end of fit write weights.safetensors (latent) and packed.safetensors of the module's `network`.

    Args:
        directory: default the trainer's log directory. Packing needs weights in sign mode: where they are not, the
        latent file alone is written and one line says so.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook."""
        network: Any = pl_module.network
        folder = Path(self.directory or trainer.log_dir or trainer.default_root_dir)
        metric = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        save_checkpoint(network, folder / "weights.safetensors", metric=metric)
        open_layers = [name for name, layer in binary_layers(network) if not layer.quantizer.sign_mode()]
        if open_layers:
            rank_zero_info(f"packed.safetensors is not written: {open_layers[0]} is not in sign mode yet")
            return
        before, after = pack_checkpoint(folder / "weights.safetensors", folder / "packed.safetensors")
        rank_zero_info(f"{folder}: weights.safetensors {before:,} bytes, packed.safetensors {after:,} bytes")
