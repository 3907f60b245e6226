"""The moving average of weights: the network itself up to its first update, then what Lightning's own gives."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from esbnn_core.lit.averaging import MovingAverage
from esbnn_core.lit.callbacks import EpochSeed
from tasks.classification.data import ClassificationDataModule
from tests.helpers.classification import make_module, same
from tests.helpers.log import Log

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]
STEPS = 4


@pytest.fixture
def fit(tmp_path: Path, make_trainer: MakeTrainer, make_data: MakeData) -> Callable[..., dict[str, Tensor]]:
    """Four steps of two epochs, each validated; the state at the end."""

    def run(*callbacks: L.Callback, source: str | None = None, saves: bool = True) -> dict[str, Tensor]:
        module = make_module("reactnet_resnet8")
        keep = ModelCheckpoint(
            dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False
        )
        kept = [keep] if saves else []
        trainer = make_trainer(max_epochs=2, callbacks=[EpochSeed(0), *kept, *callbacks], enable_checkpointing=saves)
        data = make_data(train_size=8, batch_size=4, val_size=4, augment=False)
        trainer.fit(module, data, ckpt_path=source)
        assert trainer.global_step == STEPS
        values = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val_")}
        return {**module.state_dict(), **values}

    return run


def test_without_an_update_it_is_the_network(
    fit: Callable[..., dict[str, Tensor]], tmp_path: Path, caplog: Log
) -> None:
    """At the end, in the validation and in each checkpoint."""
    plain = fit()
    kept = {step: torch.load(tmp_path / f"step={step}.ckpt", weights_only=True) for step in (1, 3)}
    with caplog.at_level("INFO"):
        average = fit(MovingAverage(decay=0.5, update_starting_at_step=STEPS))
    assert same(plain, average) and "val_loss" in plain
    assert "the run ended before the first update of its moving average" in caplog.text
    for step, checkpoint in kept.items():
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert same(saved["state_dict"], checkpoint["state_dict"]) and "averaging_state" in saved
    # a checkpoint may not be what makes it so
    assert same(plain, fit(MovingAverage(decay=0.5, update_starting_at_step=STEPS), saves=False))
    # Lightning's own shows and keeps the untrained network
    untrained = make_module("reactnet_resnet8").state_dict()
    ended = fit(EMAWeightAveraging(decay=0.5, update_starting_at_step=STEPS))
    assert all(torch.equal(ended[name], tensor) for name, tensor in untrained.items())


@pytest.mark.parametrize("first", [0, 2])
def test_with_updates_it_is_lightnings(fit: Callable[..., dict[str, Tensor]], first: int) -> None:
    ours, theirs = (fit(kind(decay=0.5, update_starting_at_step=first)) for kind in (MovingAverage, EMAWeightAveraging))
    assert same(ours, theirs) and not same(ours, fit())


def test_a_run_resumed_before_the_first_update_ends_as_the_whole_one(
    fit: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    def average() -> MovingAverage:
        return MovingAverage(decay=0.5, update_starting_at_step=2)

    whole = fit(average())
    (tmp_path / "step=1.ckpt").rename(tmp_path / "early.ckpt")
    assert same(whole, fit(average(), source=str(tmp_path / "early.ckpt")))
