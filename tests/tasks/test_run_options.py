"""Options and files that people give a run: a dry run changes nothing, overfitting repeats, the wrong file is named."""

import csv
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from esbnn_core import InputError, create_model, load_checkpoint, save_checkpoint
from esbnn_core.checkpoint.official import load_official
from esbnn_core.lit.cli import check_run_checkpoint, run
from esbnn_core.lit.resumable import InOrderSampler, make_sampler
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tests.helpers.classification import make_module

RECIPE = """
model: {network: es_reactnet_resnet8, network_options: {in_channels: 1}}
data: {batch_size: 8, train_size: 16, val_size: 8, test_size: 8}
trainer: {accelerator: cpu, devices: 1, max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture
def fit(tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a run in tmp_path/runs/recipe."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return ["fit", "--config", "recipe.yaml", "--data.root", data_root]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(*words: str) -> int:
    return run(ClassificationModule, ClassificationDataModule, list(words))


@pytest.mark.slow
def test_a_dry_run_changes_nothing_of_a_finished_run(
    fit: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*fit) == 0
    before = files(tmp_path / "runs")
    assert {"recipe/weights.safetensors", "recipe/packed.safetensors", "recipe/config.yaml"} <= set(before)
    assert call(*fit, "--trainer.fast_dev_run", "true") == 0
    assert call(*fit, "--trainer.fast_dev_run", "2", "--data.batch_size", "4") == 0
    weights = str(tmp_path / "runs/recipe/weights.safetensors")
    for command in ("validate", "test", "predict"):
        words = ["--model.weights", weights, "--model.predictions", "out", "--trainer.fast_dev_run", "true"]
        assert call(command, *fit[1:], *words) == 0
    assert files(tmp_path / "runs") == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "inter")])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_run_that_a_signal_ends_is_no_success(
    fit: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    number: signal.Signals,
    code: int,
    said: str,
) -> None:
    """Lightning leaves with 0 after SIGTERM: a script would go on with what is not there."""
    save_checkpoint(create_model("es_reactnet_resnet8", in_channels=1), tmp_path / "start.safetensors")
    step = "training_step" if command == "fit" else "validation_step"
    usual = getattr(ClassificationModule, step)

    def stopped(self: ClassificationModule, batch: Any, batch_idx: int) -> Any:
        os.kill(os.getpid(), number)
        return usual(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationModule, step, stopped)
    # Lightning switches it off, and so does a shell for what it starts in the background
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["--model.weights", "start.safetensors", "--trainer.num_sanity_val_steps", "0", "--data.val_size", "24"]
    try:
        found = call(command, *fit[1:], *words)
    except SystemExit as stop:
        found = stop.code
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == code and said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs/recipe/weights.safetensors").exists()


@pytest.mark.slow
def test_overfitting_trains_on_the_same_batches(fit: list[str], tmp_path: Path) -> None:
    words = ["--trainer.overfit_batches", "2", "--trainer.max_epochs", "12", "--model.optimizer", "torch.optim.Adam"]
    words += ["--model.optimizer.lr", "0.01", "--data.augment", "false", "--trainer.check_val_every_n_epoch", "12"]
    words += ["--data.batch_size", "8"]
    assert call(*fit, *words) == 0
    with (tmp_path / "runs/recipe/metrics.csv").open(newline="") as file:
        losses = [float(row["train_loss_epoch"]) for row in csv.DictReader(file) if row.get("train_loss_epoch")]
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("world", [1, 3])
def test_samplers_of_an_overfitting_run_go_in_order(size: int, world: int) -> None:
    class Trainer:
        world_size, overfit_batches = world, 2
        global_rank = 0

    seen = []
    for rank in range(world):
        Trainer.global_rank = rank
        sampler = make_sampler(size, Trainer(), train=True, seed=3)  # type: ignore[arg-type]
        assert isinstance(sampler, torch.utils.data.SequentialSampler)
        sampler.set_epoch(4)
        seen.append([index for index, _ in sampler])
    whole = [index for place in zip(*seen, strict=True) for index in place]
    assert whole == [place % size for place in range(-(-size // world) * world)]  # no label of training is IGNORE
    Trainer.overfit_batches = 0
    assert not isinstance(make_sampler(size, Trainer(), train=True), InOrderSampler)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "overfit", "batches"), [(9, 1.0, [4, 4, 1]), (9, 0.0, [4, 4]), (3, 1.0, [3])])
def test_an_overfitting_run_leaves_no_image_out(data_root: str, size: int, overfit: float, batches: list[int]) -> None:
    """Its order is the same in every epoch, so the images of a last batch would never have their turn."""
    data = ClassificationDataModule(root=data_root, batch_size=4, train_size=size, augment=False)
    data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, overfit_batches=overfit)  # type: ignore[assignment]
    assert [len(labels) for _, labels in data.train_dataloader()] == batches


@pytest.mark.slow
def test_a_run_without_a_logger_and_without_checkpoints(fit: list[str], tmp_path: Path) -> None:
    assert call(*fit, "--trainer.logger", "false", "--trainer.enable_checkpointing", "false") == 0
    assert (tmp_path / "runs/recipe/weights.safetensors").is_file()
    assert not list((tmp_path / "runs/recipe").glob("**/*.ckpt"))


@pytest.mark.slow
def test_the_wrong_file_in_ckpt_path_is_named(
    fit: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = create_model("es_reactnet_resnet8", in_channels=1)
    save_checkpoint(network, tmp_path / "weights.safetensors")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "official.pth")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    says = {
        "weights.safetensors": "got the weights file weights.safetensors: give it as model.weights",
        "official.pth": "got official.pth, which holds other things",
        "damaged.ckpt": "checkpoint damaged.ckpt cannot be read",
        "empty.ckpt": "checkpoint empty.ckpt cannot be read",
        "recipe.yaml": "checkpoint recipe.yaml cannot be read",
        "pipeline": "got the pipeline pipeline",
        "none.ckpt": "checkpoint none.ckpt does not exist",
    }
    for name, words in says.items():
        assert call(*fit, "--ckpt_path", name) == 2
        err = capsys.readouterr().err
        assert words in err and "Traceback" not in err, (name, err)
        assert not (tmp_path / "runs").exists()


def test_a_runs_checkpoint_is_no_weights_file(tmp_path: Path, make_data, make_trainer) -> None:  # type: ignore[no-untyped-def]
    trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(make_module(), make_data())
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    check_run_checkpoint(path)
    with pytest.raises(InputError, match=r"must be a safetensors file, got a file of torch\.save: give a run's"):
        load_checkpoint(path)
    with pytest.raises(InputError, match=r"got a run's checkpoint: give it as ckpt_path"):
        load_official(create_model("bnext_micro"), path)
    with pytest.raises(InputError, match="must be a file, got a folder"):
        load_checkpoint(tmp_path / ".")
