"""Ordinary options and callbacks of Lightning: they work, or one sentence names them; exit code 2, no traceback."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, RichProgressBar

from esbnn_core import InputError
from esbnn_core.lit.cli import run
from esbnn_core.lit.progress import leave_out_open_end
from esbnn_core.lit.refusals import refusal
from esbnn_core.lit.schedules import ProgressLR
from esbnn_core.lit.trainer_options import check_trainer_options
from esbnn_core.lit.weight_decay import DecayRule
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tests.helpers.classification import make_module
from tests.helpers.super_resolution import tiny as super_resolution

RECIPE = """
model: {network: reactnet_resnet8, network_options: {in_channels: 1}}
data: {batch_size: 8, train_size: 16, val_size: 8, test_size: 8}
trainer: {accelerator: cpu, devices: 1, max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
"""
CALLBACKS = "lightning.pytorch.callbacks."
MakeTrainer = Callable[..., L.Trainer]


def callback(name: str, **options: Any) -> str:
    return f"--trainer.callbacks+={json.dumps({'class_path': CALLBACKS + name, 'init_args': options})}"


@pytest.fixture
def fit(tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the recipe in tmp_path/runs/recipe with further words."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit"])
    words = ["fit", "--config", "recipe.yaml", "--data.root", data_root]
    return lambda *more: run(ClassificationModule, ClassificationDataModule, [*words, *more])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--trainer.logger=WandbLogger", "WandbLogger cannot be built: Requirement 'wandb"),
        ("--trainer.accelerator=tpu", "Lightning refuses this run: Requirement 'torch_xla"),
        ("--trainer.strategy=foo", "invalid strategy name: `strategy='foo'`"),
        ("--trainer.devices=0", "`Trainer(devices='0')` value is not a valid input"),
        ("--trainer.limit_train_batches=0.001", "increase the `limit_train_batches` argument"),
        ("--trainer.strategy=ddp_spawn", "trainer.strategy must not spawn processes, got ddp_spawn: give ddp"),
        ("--trainer.gradient_clip_val=.nan", "trainer.gradient_clip_val must be a number of at least 0, got nan"),
        ("--trainer.val_check_interval=1000", "`val_check_interval` (1000) must be less than"),
        (callback("BackboneFinetuning"), "'ClassificationModule' object has no attribute 'backbone'"),
        (callback("EarlyStopping", monitor="val_gone"), "`val_gone` which is not available"),
        ("--optimizer=SGD", "optimizer must be given as model.optimizer, got --optimizer"),
        ("--lr_scheduler=StepLR", "lr_scheduler must be given as model.lr_scheduler, got --lr_scheduler"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], word: str, says: str
) -> None:
    more = ["--lr_scheduler.step_size=1"] if "StepLR" in word else []
    assert fit(word, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0], lines


@pytest.mark.parametrize(
    ("option", "least"),
    [
        ("check_val_every_n_epoch", 1),
        ("accumulate_grad_batches", 1),
        ("log_every_n_steps", 0),
        ("reload_dataloaders_every_n_epochs", 0),
        ("gradient_clip_val", 0),
        ("min_epochs", 0),
        ("num_sanity_val_steps", -1),
        ("min_steps", -1),
    ],
)
def test_a_number_below_an_options_least_is_refused(option: str, least: int) -> None:
    check_trainer_options(SimpleNamespace(**{option: least}))
    said = rf"trainer\.{option} must be a number of at least {least}, got {least - 1}"
    with pytest.raises(InputError, match=said):
        check_trainer_options(SimpleNamespace(**{option: least - 1}))


def test_validation_has_an_interval_above_0() -> None:
    for interval in (1, 0.5, "00:00:01:00"):
        check_trainer_options(SimpleNamespace(val_check_interval=interval))
    with pytest.raises(
        InputError, match=r"trainer\.val_check_interval must be above 0, got 0: set trainer\.limit_val_"
    ):
        check_trainer_options(SimpleNamespace(val_check_interval=0))


def test_an_object_of_ours_says_its_own_sentence(fit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"class_path": "esbnn_core.lit.callbacks.TemperatureSchedule", "init_args": {"factor": 2.0}}
    assert fit(f"--trainer.callbacks+={json.dumps(bad)}") == 2
    assert "error: factor must be a number between 0 and 1, got 2.0" in capsys.readouterr().err


def test_a_fault_of_other_code_keeps_its_traceback() -> None:
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError as error:
        assert refusal(error) == ""
    try:
        raise InputError("ours")
    except InputError as error:
        assert refusal(error) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.barebones=true"],
        [callback("Timer", duration="00:01:00:00"), "--trainer.gradient_clip_val=1.0"],
        [callback("StochasticWeightAveraging", swa_lrs=1e-3), "--trainer.accumulate_grad_batches=2"],
        [callback("BatchSizeFinder", max_trials=2, steps_per_trial=1), "--trainer.val_check_interval=0.5"],
        [
            *("--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_interval=epoch"),
            "--model.lr_scheduler.monitor=val_loss",
        ],
    ],
)
def test_ordinary_options_work(fit: Callable[..., int], words: list[str]) -> None:
    assert fit(*words) == 0
    assert Path("runs/recipe/packed.safetensors").is_file()


class Rates(L.Callback):
    """The learning rate with which every step is taken, of the first parameters."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.slow
@pytest.mark.parametrize(("scheduled", "rate"), [(False, None), (True, None), (False, 0.0), (True, 0.2)])
def test_the_rate_that_was_found_is_trained_with(
    make_data: Callable[..., Any], make_trainer: MakeTrainer, scheduled: bool, rate: float | None
) -> None:
    """Thresholds and norms keep their multiple of it."""
    finder, rates = LearningRateFinder(num_training_steps=14, early_stop_threshold=None), Rates()
    schedule = (lambda optimizer: ProgressLR(optimizer, "linear")) if scheduled else None
    decay = None if rate is None else DecayRule("affine", 0.0, rate=rate)
    module = make_module("reactnet_resnet8", lr_scheduler=schedule, decay=decay)
    trainer = make_trainer(max_epochs=1, limit_val_batches=0, callbacks=[finder, rates])
    trainer.fit(module, make_data(batch_size=2, train_size=28))
    found = finder.optimal_lr.suggestion()
    assert found is not None and found != 5e-3
    shares = [1 - step / 14 if scheduled else 1.0 for step in range(14)]
    assert module.lr == pytest.approx(found * (0.0 if scheduled else 1.0))
    assert rates.seen == pytest.approx([found * share * (1.0 if rate is None else rate) for share in shares])


def test_a_finder_may_validate_before_training(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    """Its steps come before the module's own on_fit_start; a super-resolution network has no weights until then."""
    module, data = (
        super_resolution.make_module(),
        super_resolution.make_sets(super_resolution.write_sets(tmp_path / "sets"), val=["small"]),
    )
    finder = LearningRateFinder(num_training_steps=4)
    trainer = make_trainer(max_epochs=1, limit_val_batches=1, num_sanity_val_steps=0, callbacks=[finder])
    trainer.fit(module, data)
    assert trainer.global_step == 3 and "val_psnr" in trainer.callback_metrics


@pytest.mark.parametrize(("length", "text"), [({"max_steps": 3}, "Epoch 0"), ({"max_epochs": 3}, "Epoch 0/2")])
def test_a_run_by_steps_has_no_last_epoch(make_trainer: MakeTrainer, length: dict[str, int], text: str) -> None:
    bar = RichProgressBar()
    trainer = make_trainer(callbacks=[bar], enable_progress_bar=True, **length)
    bar._trainer = trainer
    trainer.fit_loop.max_epochs = length.get("max_epochs", -1)  # as fit sets it
    assert length == {"max_epochs": 3} or "/-2" in bar._get_train_description(0)  # Lightning's own
    leave_out_open_end(trainer)
    assert bar._get_train_description(0).rstrip() == text


@pytest.mark.slow
def test_the_last_checkpoint_is_the_last_epoch(fit: Callable[..., int]) -> None:
    """Also where the metric never gets better: a rate of 0 leaves the first epoch the best one."""
    assert fit("--trainer.max_epochs=3", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.0") == 0
    held = {
        name: torch.load(f"runs/recipe/checkpoints/{name}.ckpt", weights_only=True)["epoch"]
        for name in ("last", "best")
    }
    assert held["last"] == 2
