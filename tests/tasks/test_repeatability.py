"""Same seed, same run; resumed run, same run; worker count and process count without influence."""

import csv
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from esbnn_core import create_model, save_checkpoint
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.schedules import ProgressLR
from tasks.classification.data import ClassificationDataModule
from tests.helpers import processes
from tests.helpers.classification import make_module, same

ROOT = Path(__file__).parents[2]
MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]


@pytest.fixture(scope="module")
def few(make_data: MakeData) -> MakeData:
    """16 images, four steps an epoch."""
    return partial(make_data, train_size=16, val_size=8, batch_size=4)


def module() -> Any:
    return make_module(lr_scheduler=lambda optimizer: ProgressLR(optimizer, "cosine", warmup=0.2))


@pytest.mark.slow
def test_two_runs_and_two_worker_counts_give_one_result(few: MakeData, make_trainer: MakeTrainer) -> None:
    states = []
    for workers in (0, 0, 2):
        trained = module()
        make_trainer(max_epochs=2).fit(trained, few(num_workers=workers))
        states.append(trained.state_dict())
    assert same(states[0], states[1])
    assert same(states[0], states[2])


def test_another_seed_gives_another_result(few: MakeData, make_trainer: MakeTrainer) -> None:
    states = []
    for seed in (0, 1):
        trained = module()
        make_trainer(max_epochs=1).fit(trained, few(seed=seed))
        states.append(trained.state_dict())
    assert not same(*states)


@pytest.mark.slow
def test_resume_differs_by_nothing(tmp_path: Path, few: MakeData, make_trainer: MakeTrainer) -> None:
    whole = module()
    make_trainer(max_epochs=3).fit(whole, few())
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    first = module()
    trainer = make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[EpochSeed(0), checkpoint])
    trainer.fit(first, few())
    assert same(first.state_dict(), whole.state_dict())
    for stop in (1, 2):
        torch.manual_seed(99)  # what a new process would draw must not matter
        resumed = make_module(lr_scheduler=lambda optimizer: ProgressLR(optimizer, "cosine", warmup=0.2))
        torch.manual_seed(98)
        make_trainer(max_epochs=3).fit(resumed, few(), ckpt_path=str(tmp_path / f"epoch={stop - 1}.ckpt"))
        difference = max(
            (a.double() - b.double()).abs().max().item()
            for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
        )
        assert difference == 0.0, stop


@pytest.mark.slow
def test_a_resumed_run_draws_what_the_whole_one_drew(tmp_path: Path, few: MakeData, make_trainer: MakeTrainer) -> None:
    class Draw(L.Callback):
        """A layer with noise in small: one number of each global generator a step."""

        def __init__(self) -> None:
            self.seen: dict[int, list[float]] = {}

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            drawn = [torch.rand(1).item(), random.random(), float(np.random.rand())]
            self.seen.setdefault(trainer.current_epoch, []).extend(drawn)

    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    whole, rest = Draw(), Draw()
    callbacks = [EpochSeed(0), whole, checkpoint]
    make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=callbacks).fit(module(), few())
    again = module()
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    ckpt = str(tmp_path / "epoch=0.ckpt")
    make_trainer(max_epochs=3, callbacks=[EpochSeed(0), rest]).fit(again, few(), ckpt_path=ckpt)
    assert rest.seen == {epoch: whole.seen[epoch] for epoch in (1, 2)}
    assert len({number for drawn in whole.seen.values() for number in drawn}) == 3 * 3 * 4


def run_test(data_root: str, weights: Path, folder: Path, devices: int, size: int) -> dict[str, float]:
    """`python -m tasks.classification test` in its own processes; the metrics from its CSV log."""
    command = [sys.executable, "-m", "tasks.classification", "test", "--model.network", "es_reactnet_resnet8"]
    command += [
        f"--model.weights={weights}",
        "--model.network_options",
        "{in_channels: 1}",
        "--data.root",
        data_root,
        "--data.batch_size",
        "16",
    ]
    command += [f"--data.test_size={size}", "--trainer.accelerator=cpu", f"--trainer.devices={devices}"]
    command += ["--trainer.enable_progress_bar=false", f"--trainer.strategy={'ddp_fork' if devices > 1 else 'auto'}"]
    command += ["--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger"]
    command += [f"--trainer.logger.init_args.save_dir={folder}", "--trainer.logger.init_args.name=log"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = processes.run(command, ROOT, env)
    assert done.returncode == 0, done.stderr[-2000:]
    (log,) = folder.glob("log/version_0/metrics.csv")
    with log.open() as file:
        (row,) = list(csv.DictReader(file))
    return {key: float(row[key]) for key in ("test_top1", "test_top5", "test_loss")}


@pytest.mark.slow
def test_two_processes_count_every_image_once(tmp_path: Path, data_root: str) -> None:
    size = 101  # 2 processes, batches of 16: neither divides it
    save_checkpoint(create_model("es_reactnet_resnet8", in_channels=1), tmp_path / "weights.safetensors")
    one, two = (
        run_test(data_root, tmp_path / "weights.safetensors", tmp_path / str(devices), devices, size)
        for devices in (1, 2)
    )
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-6, rel=1e-6), key
    # a percentage of 101 images: a repeated image would show
    assert (two["test_top1"] * size / 100) == pytest.approx(round(two["test_top1"] * size / 100), abs=1e-3)


class SaveAt(L.Callback):
    """Saves a checkpoint after so many batches."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.left = path, batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("window", "batches"), [(2, 3), (3, 2), (2, 4)])
def test_a_run_saved_between_two_steps_goes_on_with_its_gradients(
    tmp_path: Path, make_data: Callable[..., Any], make_trainer: Callable[..., L.Trainer], window: int, batches: int
) -> None:
    """Lightning's checkpoint has no gradients: the next step would be of fewer batches."""

    def fit(source: Path | None = None, **options: Any) -> tuple[dict[str, torch.Tensor], L.Trainer]:
        module = make_module("reactnet_resnet8")
        callbacks = [EpochSeed(0), SaveAt(tmp_path / "at.ckpt", 0 if source else batches)]
        settings = {"max_epochs": 1, "limit_val_batches": 0, "accumulate_grad_batches": window, **options}
        trainer = make_trainer(callbacks=callbacks, **settings)
        trainer.fit(module, make_data(batch_size=4, train_size=20), ckpt_path=source)
        return module.state_dict(), trainer

    whole, _ = fit()
    noted = torch.load(tmp_path / "at.ckpt", weights_only=True).get("esbnn_gradients")
    assert (noted is None) == (batches % window == 0)
    resumed, _ = fit(tmp_path / "at.ckpt")
    assert same(whole, resumed)
    if noted is not None:
        with pytest.warns(UserWarning, match=f"the gradients of {noted['batches']} batches of {window} are lost"):
            fit(tmp_path / "at.ckpt", accumulate_grad_batches=1)


@pytest.mark.parametrize(("window", "every"), [(4, 3), (2, 3), (2, 2)])
def test_a_validation_between_two_steps_saves_the_gradients_too(
    tmp_path: Path, make_data: Callable[..., Any], make_trainer: Callable[..., L.Trainer], window: int, every: int
) -> None:
    """ModelCheckpoint writes its files there; every one of them goes on as the whole run did."""

    def fit(folder: Path, source: Path | None = None) -> dict[str, torch.Tensor]:
        module = make_module("reactnet_resnet8")
        files = ModelCheckpoint(folder, filename="{step}-{val_top1:.9f}", monitor="val_top1", save_top_k=-1)
        settings = {"max_epochs": 1, "val_check_interval": every, "accumulate_grad_batches": window}
        trainer = make_trainer(callbacks=[EpochSeed(0), files], enable_checkpointing=True, **settings)
        trainer.fit(module, make_data(batch_size=4, train_size=40, val_size=4), ckpt_path=source)
        return module.state_dict()

    whole = fit(tmp_path / "whole")
    files = sorted((tmp_path / "whole").glob("*.ckpt"))
    waiting = ["esbnn_gradients" in torch.load(file, weights_only=True) for file in files]
    assert len(files) >= 2 and any(waiting) == (every % window != 0)
    for number, file in enumerate(files):
        assert same(whole, fit(tmp_path / str(number), file)), file.name
