"""The commands that users run, in their own processes: fit, its files, and errors of one sentence."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from esbnn_core import load_checkpoint
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.lit.cli import run as run_task
from esbnn_core.lit.recipes import read_config
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
CONFIGS = [
    ROOT / "configs" / "classification" / f"{name}.yaml" for name in ("demo_es", "reactnet_r18_step1", "bnext_tiny")
]
TRAINERS = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))


COMMAND = [sys.executable, "-m", "tasks.classification", "fit"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_fit_from_yaml_writes_logs_checkpoints_and_both_exports(tmp_path: Path) -> None:
    config = str(ROOT / "configs/classification/demo_es.yaml")
    small = [
        "--data.train_size=80",
        "--data.batch_size=40",
        "--data.val_size=50",
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
    ]
    words = ["--config", config, "--config", str(ROOT / "configs/trainer/cpu.yaml"), *small]
    done = processes.run([*COMMAND, *words], tmp_path, ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "runs" / "demo_es"
    names = {path.name for path in folder.iterdir()}
    assert {"weights.safetensors", "packed.safetensors", "metrics.csv"} <= names
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val_top1", "val_top5", "train_loss", "train_loss_epoch", "lr-Adam", "flip/mean"} <= set(header)
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["train_size"] == 80
    assert load_checkpoint(folder / "packed.safetensors").model_spec.name == "es_reactnet_resnet8x2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.root", "nowhere", "--data.dataset", "fashion_mnist"], "fashion_mnist cannot be read from nowhere"),
        (["--model.network_options", "{tau: 3, in_channels: 1}"], "layer stages.layer1.0 has width 16, which tau=3"),
        (
            ["--model.network_options", "{tau: 2}"],
            "images have 1 channels and network es_reactnet_resnet8 was built for",
        ),
        (["--model.weights", "missing.safetensors"], "checkpoint missing.safetensors does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, words: list[str], sentence: str) -> None:
    base = ["--model.network", "es_reactnet_resnet8", "--trainer.logger=false"]
    if "--model.network_options" not in words:
        base += ["--model.network_options", "{in_channels: 1}"]
    done = processes.run([*COMMAND, *base, *words], tmp_path, ENVIRONMENT)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and sentence in last
    assert "Traceback" not in done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts]
    assert not left, left


@pytest.mark.parametrize(
    ("config", "trainer"),
    # every trainer with two of the recipes, every recipe with several trainers
    [(CONFIGS[(place + one) % 3], trainer) for one in (0, 1) for place, trainer in enumerate(TRAINERS)],
    ids=lambda path: path.stem,
)
def test_configs_parse_with_every_trainer(config: Path, trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # parsed against the type hints, not run: the trainers of GPU machines do not build here
    monkeypatch.setattr(TaskCLI, "instantiate_classes", lambda self: None)
    cli = TaskCLI(
        ClassificationModule,
        ClassificationDataModule,
        run=False,
        args=["--config", str(config), "--config", str(trainer)],
        seed_everything_default=0,
    )
    wanted = yaml.safe_load(trainer.read_text())["trainer"]
    for key, value in wanted.items():
        if key != "logger":  # a list of classes comes back as objects
            assert cli.config.trainer[key] == value
    assert cli.config.model.network == read_config(config)["model"]["network"]


def test_a_mistyped_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        TaskCLI(
            ClassificationModule,
            ClassificationDataModule,
            run=False,
            args=["--config", str(CONFIGS[0]), "--model.taau=2"],
            seed_everything_default=0,
        )
    assert stop.value.code == 2
    assert "taau" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--trainer.max_epoch=3", "--data.val_siz=7"])
def test_half_an_option_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse would take it for the one option that begins so."""
    with pytest.raises(SystemExit) as stop:
        run_task(ClassificationModule, ClassificationDataModule, ["fit", "--config", str(CONFIGS[0]), word])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {word}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["validate", "predict"])
def test_a_config_in_front_may_hold_any_subcommand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The options of a subcommand are made where the first word does not rule it out."""
    monkeypatch.setattr(sys, "argv", ["classification"])
    monkeypatch.setattr(TaskCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(TaskCLI, "_run_subcommand", lambda self, subcommand: None)
    config = tmp_path / "front.yaml"
    config.write_text(f"{name}: {{model: {{network: reactnet_resnet8}}, data: {{batch_size: 3}}}}")
    cli = TaskCLI(ClassificationModule, ClassificationDataModule, args=["--config", str(config)])
    assert cli.subcommand == name and cli.config[name].data.batch_size == 3
    with pytest.raises(SystemExit) as stop:
        run_task(ClassificationModule, ClassificationDataModule, [name, "--help"])
    assert stop.value.code == 0 and "--data.batch_size" in capsys.readouterr().out
