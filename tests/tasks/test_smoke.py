"""The smoke trainer: any recipe for two steps on generated images, to its files; and runs that end with a sentence."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from esbnn_core import load_checkpoint, read_checkpoint
from esbnn_core.lit.cli import TaskCLI, run
from esbnn_core.lit.recipes import read_recipe
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs/trainer/smoke.yaml"
NAMES = sorted(p.stem for p in (ROOT / "configs/classification").glob("*.yaml") if not p.stem.startswith("demo_"))
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def path(name: str) -> Path:
    return ROOT / "configs/classification" / f"{name}.yaml"


def shapes() -> dict[str, str]:
    """The first recipe of every shape: what the smoke trainer meets and may leave in, without a recipe's numbers."""
    first: dict[str, str] = {}
    for name in NAMES:
        held = read_recipe(path(name), ClassificationModule.monitor)
        model, trainer = held["model"], held["trainer"]
        objects = [part["class_path"] for key in ("callbacks", "logger") for part in trainer[key]]
        objective = model.get("objective", {}).get("class_path")
        words = [sorted(held), sorted(model), sorted(held["data"]), sorted(trainer), objective, objects]
        words += [held["data"].get("dataset"), *(str(trainer.get(key)) for key in ("precision", "strategy", "devices"))]
        first.setdefault(str(words), name)
    return first


@pytest.mark.parametrize("name", shapes().values())
def test_the_smoke_trainer_takes_downloads_paths_and_machines_out(name: str) -> None:
    with torch.device("meta"):
        cli = TaskCLI(
            ClassificationModule,
            ClassificationDataModule,
            run=False,
            args=["--config", str(path(name)), "--config", str(SMOKE)],
            seed_everything_default=0,
        )
    assert cli.model.untrained_teachers and cli.datamodule.dataset == "generated"
    trainer = cli.trainer
    assert (trainer.max_epochs, trainer.limit_train_batches, trainer.limit_val_batches) == (2, 1, 1)
    assert trainer.default_root_dir.endswith("runs/smoke") and trainer.log_dir.rstrip("/").endswith("runs/smoke")
    # nothing of the run it is tried for may be written over
    assert "runs/smoke" in str(cli.config_dump) and f"runs/{name}" not in str(cli.config_dump)
    assert trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Two steps at 32 pixels; returns the folder that it wrote."""
    monkeypatch.chdir(tmp_path)

    def run_recipe(name: str, *words: str) -> Path:
        args = ["fit", "--config", str(path(name)), "--config", str(SMOKE), "--data.image_size=32"]
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        assert run(ClassificationModule, ClassificationDataModule, [*args, *quiet, *words]) == 0
        assert {p.name for p in tmp_path.glob("runs/*")} == {"smoke"}
        return tmp_path / "runs" / "smoke"

    return run_recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recu_r20_cifar10", "es_recu_r20_cifar10"])
def test_recu_runs_through_to_its_packed_file(smoke: Callable[..., Path], name: str) -> None:
    folder = smoke(name)
    latent, packed = (load_checkpoint(folder / f"{kind}.safetensors") for kind in ("weights", "packed"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(latent(x), packed(x)) and latent(x).shape == (2, 1000)
    assert (folder / "checkpoints" / "last.ckpt").is_file() and (folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
def test_reactnet_runs_both_steps_and_hands_over(tmp_path: Path, smoke: Callable[..., Path]) -> None:
    # a small network of the same family: a checkpoint of ResNet-18 with its optimizer takes longer than its steps
    small = "--model.network=reactnet_resnet8"
    first = smoke("reactnet_r18_step1", small) / "weights.safetensors"
    assert read_checkpoint(first).weights == "real" and not (first.parent / "packed.safetensors").exists()
    handed = tmp_path / "step1.safetensors"
    first.rename(handed)
    folder = smoke("reactnet_r18_step2", f"--model.weights={handed}", small)
    assert read_checkpoint(folder / "weights.safetensors").weights == "binary"
    assert load_checkpoint(folder / "packed.safetensors").model_spec.name == "reactnet_resnet8"
    before, after = read_checkpoint(handed).tensors, read_checkpoint(folder / "weights.safetensors").tensors
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"fc.weight", "stem.conv.weight", "stages.layer1.0.conv.weight"} <= moved
    # one Adam step at 2.5e-3 * (1 - 1/2) from step 1's values, then one at 0: not a start of its own
    assert max((before[k] - after[k]).abs().max().item() for k in moved if k.endswith("weight")) < 1.3e-3


def test_a_teacher_that_is_not_there_ends_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    args = ["fit", "--config", str(path("reactnet_r18_step1")), "--config", str(SMOKE), "--data.image_size=32"]
    assert run(ClassificationModule, ClassificationDataModule, [*args, "--model.untrained_teachers=false"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "error: teacher resnet34 with weights IMAGENET1K_V1 cannot be built (<urlopen error no network>)"
    )
    assert f"{tmp_path}/cache/hub/checkpoints/resnet34-b627a593.pth" in last
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.safetensors"))


def test_step_2_without_step_1_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", str(path("reactnet_r18_step2")), "--trainer.accelerator=cpu"]
    assert run(ClassificationModule, ClassificationDataModule, args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "error: checkpoint runs/reactnet_r18_step1/weights.safetensors does not exist: check the path"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_export_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.classification", "fit", "--config", str(path("recu_r20_cifar10"))]
    command += ["--config", str(SMOKE), "--data.image_size=32", "--trainer.devices=2", "--trainer.strategy=ddp"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = processes.run(command, tmp_path, env)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "runs" / "smoke"
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    exported = ["config.yaml", "metrics.csv", "packed.safetensors", "weights.safetensors"]
    assert files == ["checkpoints/best.ckpt", "checkpoints/last.ckpt", *exported]
    assert load_checkpoint(folder / "packed.safetensors").model_spec.name == "recu_resnet20"
