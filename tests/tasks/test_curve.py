"""A run's folder over several commands: the curve of a resumed run is the uninterrupted one's, a test adds to it."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from esbnn_core.lit.cli import run
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's hints about workers and small epochs


def command(folder: Path, data_root: str, sub: str, *words: str) -> None:
    """A classification command on 24 real images that writes into `folder`, four steps an epoch."""
    path = folder.parent / f"{folder.name}.yaml"
    config: dict[str, Any] = {
        "model": {"network": "reactnet_resnet8", "network_options": {"in_channels": 1}},
        "data": {"dataset": "fashion_mnist_mini", "root": data_root, "batch_size": 6, "num_workers": 0},
        "trainer": {
            **{"accelerator": "cpu", "devices": 1, "max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
            **{"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder)},
            "logger": [
                {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": str(folder), "name": "", "version": ""},
                }
            ],
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"},
                },
                {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
            ],
        },
    }
    config["data"] |= {"train_size": 24, "val_size": 10, "test_size": 20}
    path.write_text(yaml.safe_dump(config))
    assert run(ClassificationModule, ClassificationDataModule, [sub, "--config", str(path), *words]) == 0


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def told(found: Sequence[dict[str, str]], without: int) -> list[list[tuple[str, str]]]:
    """All rows but those of LearningRateMonitor, which logs the first step of an epoch twice, or once resumed, and the
    mean of the epoch that ends with step `without`: Lightning takes it over the batches behind the checkpoint."""
    rows = [row for row in found if "epoch" in row and not ("train_loss_epoch" in row and row["step"] == str(without))]
    return sorted(sorted(row.items()) for row in rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    command(folder, data_root, "fit")
    assert len(rows(folder)) > 12
    return folder


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "again"))


@pytest.mark.slow
@pytest.mark.parametrize(("step", "broken"), [(4, -1), (6, 7)])
def test_the_curve_of_a_resumed_run_is_the_uninterrupted_ones(
    folder: Path, whole: Path, data_root: str, step: int, broken: int
) -> None:
    """From the end of an epoch and from the middle of one; what was written after the checkpoint is written once."""
    (checkpoint,) = whole.rglob(f"step={step}.ckpt")
    command(folder, data_root, "fit", "--ckpt_path", str(checkpoint))
    assert told(rows(folder), broken) == told(rows(whole), broken)


def test_a_training_into_the_same_folder_without_a_checkpoint_is_another_run(folder: Path, data_root: str) -> None:
    command(folder, data_root, "fit", "--trainer.max_epochs", "1")
    assert {row.get("epoch", "0") for row in rows(folder)} == {"0"}


@pytest.mark.slow
def test_an_evaluation_leaves_curve_and_config_and_adds_its_row(folder: Path, data_root: str) -> None:
    before, config = rows(folder), (folder / "config.yaml").read_text()
    (checkpoint,) = folder.rglob("step=12.ckpt")
    for sub in ("test", "validate"):
        command(folder, data_root, sub, "--ckpt_path", str(checkpoint), "--data.batch_size", "10")
    found = rows(folder)
    assert found[: len(before)] == before
    tested, validated = found[len(before) :]
    assert "test_top1" in tested and "val_top1" in validated and "train_loss" not in {**tested, **validated}
    assert (folder / "config.yaml").read_text() == config
    assert not list(folder.glob("*.kept"))
