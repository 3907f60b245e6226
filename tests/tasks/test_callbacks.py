"""Schedules of quantizers over whole runs, and what ExportWeights writes: the last network or the best one."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from esbnn_core import create_model, load_checkpoint, pack_, read_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.layers.base import binary_layers
from esbnn_core.lit.callbacks import ExportWeights, ReCUSchedule, TemperatureSchedule
from esbnn_core.units import BinaryUnit, UnitStyle
from tasks.classification.data import ClassificationDataModule
from tests.helpers.classification import make_module

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]


class Quick(L.LightningModule):
    """One unit of BNext or ReCU on four pixels: a hundred epochs take seconds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        quantizer: Any = binary_layers(self.network)[0][1].quantizer
        self.seen.append(quantizer.temperature.item() if hasattr(quantizer, "temperature") else quantizer.tau.item())
        loss: Tensor = self.network(batch[0]).square().mean()
        return loss

    def train_dataloader(self) -> Any:
        return DataLoader([torch.ones(8, 2, 2)] * 2, batch_size=2, collate_fn=lambda items: [torch.stack(items)])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def unit(name: str) -> nn.Module:
    torch.manual_seed(0)
    quantizer = "temperature" if "bnext" in name else "recu"
    return nn.Sequential(BinaryUnit(8, 8, style=UnitStyle(weight_quantizer=quantizer, ste="clip", clip=1.5)))


def test_sign_mode_comes_in_epoch_153_of_a_real_run(make_trainer: MakeTrainer) -> None:
    modes: dict[int, bool] = {}

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            quantizer: Any = binary_layers(module)[0][1].quantizer
            modes[trainer.current_epoch] = quantizer.sign_mode()
            if trainer.current_epoch == 152:
                with pytest.raises(InputError, match="not in sign mode, its temperature is not annealed"):
                    pack_(module.network)

    module = Quick(unit("bnext"))
    make_trainer(max_epochs=155, callbacks=[TemperatureSchedule(), Watch()]).fit(module)
    assert module.seen == pytest.approx([0.9**epoch for epoch in range(155)], rel=1e-6)
    assert [epoch for epoch, signs in modes.items() if signs] == [153, 154]
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        want = module.network.eval()(x)
        assert torch.equal(pack_(module.network)(x), want)


@pytest.mark.parametrize("name", ["bnext18", "es_bnext18"])
def test_the_schedule_reaches_every_layer_of_a_network(name: str) -> None:
    network = create_model(name, num_classes=10)
    module: Any = SimpleNamespace(log=lambda *_: None, named_modules=network.named_modules)
    for epoch, signs in ((0, False), (152, False), (153, True)):
        TemperatureSchedule().on_train_epoch_start(SimpleNamespace(current_epoch=epoch), module)  # type: ignore[arg-type]
        modes = {layer.quantizer.sign_mode() for _, layer in binary_layers(network)}
        # BNext-18 turns to signs earlier, at its own threshold of 1e-5 (papers.md#bnext-18)
        assert modes == {signs or (epoch == 152)}, epoch
    pack_(network)


@pytest.mark.parametrize("epochs", [2, 7, 600])
def test_recus_tau_rises_as_published(epochs: int) -> None:
    """Spec 5.3: 0.85 at the start, 0.9029 in the middle, to 0.99; Q/EW = -ln(2 - 2 tau) 1.204, 1.638, 3.88 there."""
    schedule = ReCUSchedule()
    taus = [schedule.tau(epoch, epochs) for epoch in range(epochs)]
    a = (0.99 - 0.85) / (math.e - 1)
    assert taus == pytest.approx([a * math.exp(e / epochs) + (0.85 - a) for e in range(epochs)], rel=1e-12)
    assert taus[0] == 0.85 and all(x < y < 0.99 for x, y in pairwise(taus))
    assert round(schedule.tau(1, 2), 4) == 0.9029
    bounds = [-math.log(2 - 2 * schedule.tau(e, 600)) for e in (0, 300, 599)]
    assert [round(bound, d) for bound, d in zip(bounds, (3, 3, 2), strict=True)] == pytest.approx(
        [1.204, 1.638, 3.88], abs=6e-3
    )


def test_recus_tau_is_set_in_a_real_run_and_after_a_resume(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    whole = Quick(unit("recu"))
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    make_trainer(max_epochs=6, callbacks=[ReCUSchedule(), keep], enable_checkpointing=True).fit(whole)
    assert whole.seen == pytest.approx([ReCUSchedule().tau(e, 6) for e in range(6)], rel=1e-6)
    resumed = Quick(unit("recu"))
    trainer = make_trainer(max_epochs=6, callbacks=[ReCUSchedule()])
    trainer.fit(resumed, ckpt_path=str(tmp_path / "epoch=2.ckpt"))
    assert resumed.seen == whole.seen[3:]
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_recus_schedule_refuses(make_trainer: MakeTrainer) -> None:
    for options in ({"start": 0.4}, {"end": 1.0}, {"start": 0.9, "end": 0.86}):
        with pytest.raises(InputError, match=r"must be 0\.5 <= start <= end < 1, got"):
            ReCUSchedule(**options)
    with pytest.raises(InputError, match=r"set trainer\.max_epochs"):
        make_trainer(max_epochs=-1, max_steps=2, callbacks=[ReCUSchedule()]).fit(Quick(unit("recu")))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["last", "best"])
@pytest.mark.parametrize("real", [False, True])
def test_the_network_asked_for_is_exported(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer, which: Any, real: bool
) -> None:
    class Score(L.Callback):
        """A metric whose best epoch is the first of three."""

        def __init__(self) -> None:
            self.states: list[dict[str, Tensor]] = []

        def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            module.log("val_score", 3.0 - trainer.current_epoch)
            self.states.append({k: t.detach().clone() for k, t in module.network.state_dict().items()})

    score = Score()
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", monitor="val_score", mode="max", save_last=True)
    callbacks = [score, keep, ExportWeights(str(tmp_path / "out"), which)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "packed.safetensors").write_bytes(b"of an earlier run")
    trainer = make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=callbacks, num_sanity_val_steps=0)
    module = make_module(real_weights=real)
    trainer.fit(module, make_data(train_size=16, val_size=8, batch_size=8))
    read = read_checkpoint(tmp_path / "out" / "weights.safetensors")
    want = score.states[0 if which == "best" else -1]
    assert read.tensors.keys() == want.keys() and all(torch.equal(read.tensors[k], want[k]) for k in want)
    assert read.metric["val_score"] == (3.0 if which == "best" else 1.0)
    assert read.weights == ("real" if real else "binary")
    packed = tmp_path / "out" / "packed.safetensors"
    assert packed.exists() is not real
    if not real:
        x = torch.randn(2, 1, 28, 28)
        latent = load_checkpoint(tmp_path / "out" / "weights.safetensors")
        with torch.no_grad():
            assert torch.equal(load_checkpoint(packed)(x), latent(x))


def test_best_without_a_judge_is_said_before_training(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    for keep in ([], [ModelCheckpoint(dirpath=tmp_path)]):
        trainer = make_trainer(
            max_epochs=1, enable_checkpointing=bool(keep), callbacks=[*keep, ExportWeights(str(tmp_path), "best")]
        )
        with pytest.raises(InputError, match="needs a ModelCheckpoint that monitors a metric, got none"):
            trainer.fit(make_module(), make_data())
        assert trainer.global_step == 0 and not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(InputError, match="must be one of last, best, got 'middle'"):
        ExportWeights(which="middle")  # type: ignore[arg-type]


def test_best_without_a_validation_is_a_sentence(
    tmp_path: Path, make_data: MakeData, make_trainer: MakeTrainer
) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, monitor="val_top1", mode="max")
    callbacks = [keep, ExportWeights(str(tmp_path), "best")]
    trainer = make_trainer(max_epochs=1, enable_checkpointing=True, callbacks=callbacks, limit_val_batches=0)
    with pytest.raises(InputError, match=r"no best file by val_top1 to export \(none was written\)"):
        trainer.fit(make_module(), make_data())
    assert not list(tmp_path.glob("*.safetensors"))
