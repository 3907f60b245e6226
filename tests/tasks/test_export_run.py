"""`esbnn export CKPT OUT`: the files of an epoch from its checkpoint, as the callbacks of the run write them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core import create_model, load_checkpoint, read_checkpoint, save_checkpoint
from esbnn_core.cli import main
from esbnn_core.lit.cli import run
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule
from tests.helpers.classification import make_module
from tests.helpers.detection import tiny as detection
from tests.helpers.super_resolution import tiny as super_resolution

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
HEAD = "trainer: {max_epochs: 2, devices: 1, num_sanity_val_steps: 0, callbacks+: ["
BEST = "{class_path: esbnn_core.lit.callbacks.ExportWeights, init_args: {directory: best, which: best}}"
PIPELINE = "{class_path: tasks.super_resolution.export.ExportPipeline}"
CLASSIFICATION = """
model:
  network: NETWORK
  network_options: {in_channels: 1}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
data: {batch_size: 8, train_size: 16, val_size: 16, test_size: 16}
"""
DETECTION = f"""
model:
  model: {Path(detection.TINY).with_name("tiny_bidet_ssd.py")}
  from_scratch: true
  overrides: {{bbox_head.in_channels: [128]}}
data:
  root: {detection.EMBEDDED}
  train: [VOC2007/train]
  val: [VOC2007/test]
  pipeline: {detection.TINY}
  batch_size: 2
  train_size: 2
  test_size: 1
"""
SUPER_RESOLUTION = f"""
model: {{unet: {{tau: 2}}, overrides: {super_resolution.OPTIONS}, num_inference_steps: 2}}
data: {{root: sets, train: [pieces], val: [odd], test: [odd], patch: 16, batch_size: 3}}
"""
Fit = Callable[..., Path]


@pytest.fixture
def fit(tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Runs a recipe in tmp_path; returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit"])
    tasks: dict[str, tuple[Any, Any, str, Any]] = {
        CLASSIFICATION: (ClassificationModule, ClassificationDataModule, f"{BEST}", ("num_classes",)),
        DETECTION: (DetectionModule, VOCDataModule, BEST, ("num_classes",)),
        SUPER_RESOLUTION: (SuperResolutionModule, SRDataModule, f"{BEST}, {PIPELINE}", ("scale",)),
    }

    def train(recipe: str, *words: str, network: str = "es_reactnet_resnet8") -> Path:
        module, data, callbacks, links = tasks[recipe]
        body = recipe.replace("NETWORK", network)
        (tmp_path / "recipe.yaml").write_text(f"{body}\n{HEAD}{callbacks}]}}\n")
        if recipe is SUPER_RESOLUTION:
            super_resolution.write_sets(tmp_path / "sets")
        root = [f"--data.root={data_root}"] if recipe is CLASSIFICATION else []
        assert run(module, data, ["fit", "--config", "recipe.yaml", *QUIET, *root, *words], links=links) == 0
        return tmp_path / "runs" / "recipe"

    return train


def same(one: Path, other: Path) -> None:
    """Every file of `one` is in `other`, with equal tensors and metadata; safetensors writes metadata in any order."""
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files
    for name in files:
        if len(name.parts) == 1:
            a, b = read_checkpoint(one / name), read_checkpoint(other / name)
            assert a.metadata == b.metadata and a.tensors.keys() == b.tensors.keys()
            assert all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.usefixtures("narrow_trunks")
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (CLASSIFICATION, []),
        (CLASSIFICATION, ["--trainer.precision=bf16-true", "--model.train_on_bits=true"]),
        (DETECTION, ["--trainer.precision=64-true"]),
        (SUPER_RESOLUTION, ["--trainer.precision=bf16-true"]),
    ],
)
def test_an_export_is_what_the_callbacks_wrote(
    fit: Fit, capsys: pytest.CaptureFixture[str], recipe: str, words: list[str]
) -> None:
    folder = fit(recipe, *words)
    for name in ("last", "best"):
        assert main(["export", str(folder / "checkpoints" / f"{name}.ckpt"), f"of_{name}"]) == 0
        assert f"of_{name}: weights.safetensors" in capsys.readouterr().out
    names = {"weights.safetensors", "packed.safetensors"} | ({"pipeline"} if recipe is SUPER_RESOLUTION else set())
    assert {path.name for path in Path("of_last").iterdir()} == names
    same(Path("of_last"), folder)
    same(Path("best"), Path("of_best"))
    assert all(read_checkpoint(f"of_best/{kind}.safetensors").metric for kind in ("weights", "packed"))


@pytest.mark.slow
def test_the_start_file_may_be_gone_and_lightning_reads_the_checkpoint(fit: Fit, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_checkpoint(create_model("es_reactnet_resnet8", in_channels=1), start)
    folder = fit(CLASSIFICATION, f"--model.weights={start}")
    start.unlink()
    path = folder / "checkpoints" / "best.ckpt"
    assert main(["export", str(path), "out"]) == 0
    module = ClassificationModule.load_from_checkpoint(path)
    held = read_checkpoint("out/weights.safetensors").tensors
    assert all(torch.equal(tensor, held[name]) for name, tensor in module.network.state_dict().items())


@pytest.mark.slow
def test_weights_that_are_not_signs_are_written_alone(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(CLASSIFICATION, "--trainer.max_epochs=1", network="bnext_micro")
    assert main(["export", str(folder / "checkpoints" / "last.ckpt"), "out"]) == 0
    assert "packed.safetensors is not written" in capsys.readouterr().out
    assert [path.name for path in Path("out").iterdir()] == ["weights.safetensors"]
    load_checkpoint("out/weights.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    """What the command line notes in a checkpoint, beside an untrained network."""
    state = {f"network.{k}": t for k, t in make_module().network.state_dict().items()}
    options = {"network": "es_reactnet_resnet8", "num_classes": 10, "network_options": {"in_channels": 1}}
    noted = {"module": "tasks.classification.module.ClassificationModule", "metric": {"val_top1": 1.0}, "commit": ""}
    head = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}
    return {**head, "state_dict": state, "esbnn": noted, "hyper_parameters": options}


def test_a_checkpoint_is_exported_whole_or_not_at_all(
    tmp_path: Path, checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(source: str, target: str = "out", **changes: Any) -> str:
        if changes:
            torch.save({**checkpoint, **changes}, source)
        before = sorted(tmp_path.rglob("*"))
        assert main(["export", source, target]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    torch.save(checkpoint, "good.ckpt")
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").touch()
    save_checkpoint(make_module().network, "weights.safetensors")
    torch.save(checkpoint["state_dict"], "official.pth")
    Path("damaged.ckpt").write_bytes(Path("good.ckpt").read_bytes()[:-200])
    assert "checkpoint none.ckpt does not exist" in refused("none.ckpt")
    assert "got the folder full: give checkpoints/last.ckpt in it" in refused("full")
    assert "got the pipeline pipeline" in refused("pipeline")
    assert "got the weights file weights.safetensors: esbnn pack" in refused("weights.safetensors")
    assert "got official.pth, which holds other things" in refused("official.pth")
    assert "damaged.ckpt cannot be read" in refused("damaged.ckpt")
    assert "full must be a new folder, got a folder with files in it" in refused("good.ckpt", "full")
    assert "good.ckpt must be a new folder, got a file" in refused("good.ckpt", "good.ckpt")
    noted, options = checkpoint["esbnn"], checkpoint["hyper_parameters"]
    assert "does not say which options built" in refused("a.ckpt", hyper_parameters={})
    assert "does not say which options built" in refused("a.ckpt", esbnn=None)
    elsewhere = {**noted, "module": "antigravity.Module"}
    assert "must be of a module in tasks, got antigravity.Module" in refused("a.ckpt", esbnn=elsewhere)
    gone = {**noted, "module": "tasks.gone.Module"}
    assert "tasks.gone.Module of checkpoint a.ckpt cannot be imported" in refused("a.ckpt", esbnn=gone)
    other = {**noted, "module": "tasks.classification.data.ClassificationDataModule"}
    assert "must name the class of a task's module" in refused("a.ckpt", esbnn=other)
    assert "colour" in refused("a.ckpt", hyper_parameters={**options, "colour": "red"})
    assert "network 'none' is not known" in refused("a.ckpt", hyper_parameters={**options, "network": "none"})
    assert "does not fit the network" in refused("a.ckpt", hyper_parameters={**options, "num_classes": 11})
    assert "without tensors of a network" in refused("a.ckpt", state_dict={"x": torch.zeros(1)})
    assert "must hold a state_dict of dense tensors" in refused("a.ckpt", state_dict={"x": 1})
    nan = {**checkpoint["state_dict"], "network.fc.bias": torch.full((10,), float("nan"))}
    assert "tensor fc.bias of a.ckpt holds NaN" in refused("a.ckpt", state_dict=nan)
    Path("empty").mkdir()
    assert main(["export", "good.ckpt", "empty"]) == 0 and main(["export", "good.ckpt", "new/deep"]) == 0
    same(Path("empty"), Path("new/deep"))
    assert read_checkpoint("empty/weights.safetensors").metric == {"val_top1": 1.0}
