"""`python -m tasks.super_resolution`: fit to its files, test, predict, two processes, recipes, one-sentence errors."""

import csv
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from esbnn_core import pack_
from esbnn_core.checkpoint.format import save_checkpoint
from esbnn_core.lit.cli import run
from esbnn_core.lit.recipes import read_recipe
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule
from tasks.super_resolution.pipeline import SuperResolutionPipeline
from tests.helpers import processes
from tests.helpers.super_resolution.tiny import EMBEDDED, write_sets

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "super_resolution"
NAMED = ("bi_diffsr_x2", "bi_diffsr_x4", "es_bi_diffsr_x2", "es_bi_diffsr_x4", "real_sr3_x2")
VARIANTS = ("bnn", "dorefa", "xnor", "irnet", "reactnet", "bbcu")
TWO_LEVELS = ["--model.overrides.channel_mults=[1,2]", "--model.overrides.real_resolutions=[256]"]
"""Half of smoke.yaml's network, for what does not depend on its depth; two processes train the whole one."""


@pytest.fixture(autouse=True)
def no_words_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of arguments beside those of the process."""
    monkeypatch.setattr(sys, "argv", ["super_resolution"])


def command(*words: str) -> int:
    return run(SuperResolutionModule, SRDataModule, list(words), links=("scale",))


def words(folder: Path, name: str, *more: str, recipe: str = "es_bi_diffsr_x2") -> list[str]:
    """The subcommand NAME of a recipe with smoke.yaml behind it, everything written under `folder`."""
    configs = ["--config", str(CONFIGS / f"{recipe}.yaml")] if recipe else []
    places = [f"--data.root={EMBEDDED}", f"--trainer.default_root_dir={folder}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    log = [f"--trainer.logger.init_args.save_dir={folder}"]
    return [name, *configs, "--config", str(CONFIGS / "smoke.yaml"), *places, *quiet, *log, *more]


def smoke(folder: Path, name: str, *more: str, recipe: str = "es_bi_diffsr_x2") -> int:
    return command(*words(folder, name, *more, recipe=recipe))


@pytest.mark.slow
def test_fit_test_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = write_sets(tmp_path / "sets")
    small = [f"--data.root={sets}", "--data.val=[small]", "--data.test=[small,odd]"]
    run_, quick = tmp_path / "run", ["--data.test_size=0", *small, *TWO_LEVELS]
    assert smoke(run_, "fit", "--data.train=[pieces]", *quick) == 0
    config = yaml.safe_load((run_ / "config.yaml").read_text())
    assert config["model"]["unet"]["tau"] == 2 and config["model"]["overrides"]["inner_channels"] == 8
    names = {path.name for path in run_.iterdir()}
    assert {"weights.safetensors", "packed.safetensors", "pipeline", "metrics.csv", "checkpoints"} <= names
    assert {path.name for path in (run_ / "checkpoints").iterdir()} >= {"best.ckpt", "last.ckpt"}
    assert SuperResolutionPipeline.from_pretrained(run_ / "pipeline").unet.config.tau == 2
    weights = f"--model.weights={run_ / 'weights.safetensors'}"
    capsys.readouterr()
    assert smoke(tmp_path / "a", "test", weights, *quick) == 0
    by_file = capsys.readouterr().out.split("Test metric")[0].split("─")[0]
    assert re.search(r"^small +3 +\d", by_file, re.M) and re.search(r"^odd +2 +\d", by_file, re.M)
    assert smoke(tmp_path / "a", "test", f"--ckpt_path={run_ / 'checkpoints' / 'last.ckpt'}", *quick) == 0
    assert capsys.readouterr().out.split("Test metric")[0].split("─")[0] == by_file
    packed = f"--model.weights={run_ / 'packed.safetensors'}"
    images, out = sets / "odd", tmp_path / "out"
    drawn = [f"--data.images={images}", f"--model.predictions={out}", *TWO_LEVELS]
    assert smoke(tmp_path / "a", "predict", packed, *drawn) == 0
    assert {path.name for path in out.iterdir()} == {"odd0.png", "odd1.png", "_sheet.png"}
    with Image.open(images / "odd1.png") as source, Image.open(out / "odd1.png") as result:
        assert result.size == (2 * source.width, 2 * source.height)


@pytest.mark.slow
def test_two_processes_train_and_count_every_image_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = write_sets(tmp_path / "sets")
    small = [f"--data.root={sets}", "--data.train=[pieces]", "--data.val=[small]", "--data.test_size=0"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    # forked: the second process imports nothing again
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "tasks.super_resolution", *words(tmp_path / "run", "fit", *small, *two)]
    done = processes.run(call, tmp_path, env)
    assert done.returncode == 0, done.stderr[-2000:]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    (by_two,) = [float(row["val_psnr"]) for row in rows if row["val_psnr"]]
    weights = f"--model.weights={tmp_path / 'run' / 'weights.safetensors'}"
    assert smoke(tmp_path / "one", "validate", weights, *small) == 0
    found = re.search(r"val_psnr\s*[│|]\s*([\d.]+)", capsys.readouterr().out)
    assert found and float(found.group(1)) == pytest.approx(by_two, abs=1e-3)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--data.root=nowhere"], "nowhere must have a folder manga-like-train, "),
        (["--data.scale=0"], "data.scale must be a whole number of at least 2, got 0"),
        (["--model.weights=gone.safetensors"], "checkpoint gone.safetensors does not exist"),
        (["--ckpt_path=gone.ckpt"], "checkpoint gone.ckpt does not exist: check ckpt_path"),
        (["--model.sampler=Nope"], "scheduler 'Nope' is not one of diffusers'"),
        (["--model.overrides={depth: 3}"], "an option of model.unet must be one of in_channels"),
        (["--data.patch=36"], "data.patch must be a multiple of 8 and of the scale 2, got 36"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert smoke(tmp_path, "fit", *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and sentence in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_no_image_and_packed_weights_end_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SuperResolutionModule(unet={"tau": 2}, overrides=overrides())
    weights = tmp_path / "packed.safetensors"
    save_checkpoint(pack_(module.network.eval()), weights)
    images, run_ = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    (images / "page.png").write_bytes(b"no image")
    assert smoke(run_, "predict", f"--model.weights={weights}", f"--data.images={images}") == 2
    assert re.search(r"error: .*page\.png cannot be read", capsys.readouterr().err)
    assert smoke(run_, "fit", f"--model.weights={weights}") == 2
    assert "error: the network is packed and holds no latent weights" in capsys.readouterr().err
    assert smoke(run_, "test") == 2
    assert "error: there are no trained weights to test" in capsys.readouterr().err
    assert not [path for path in run_.rglob("*") if path.is_file()]


def overrides() -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())["model"]["overrides"]
    return options


@pytest.mark.parametrize("name", [*NAMED, *(f"variant_{variant}" for variant in VARIANTS)])
def test_a_recipe_is_the_papers_and_its_header_says_so(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    recipe = read_recipe(CONFIGS / f"{name}.yaml")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for fact in ("Run", "The paper reports", "Differs from the paper"):
        assert re.search(rf"^# {fact}[^:]*: \S|^# {fact} \(", header, re.M), fact
    for file in re.findall(r"configs/[\w/]+\.yaml", header):
        assert (ROOT / file).is_file()
    assert f"configs/super_resolution/{name}.yaml" in header
    with torch.device("meta"):
        network = SuperResolutionModule(unet=recipe["model"]["unet"]).network
    config = network.config
    assert config.group_rule == "first"
    if name in NAMED:
        scale = int(name[-1])
        assert recipe["data"] == {"scale": scale, "patch": 64 * scale, "batch_size": 4, "num_workers": 4}
        assert recipe["model"]["optimizer"]["init_args"] == {"lr": 1e-4, "betas": [0.9, 0.99]}
        assert recipe["trainer"]["max_steps"] == 1_000_000 and "Steps: 1,000,000. Global batch: 16 = 4" in header
        assert recipe["seed_everything"] == 10 and recipe["trainer"]["default_root_dir"] == f"runs/{name}"
        assert (config.variant, config.tau) == ("real" if "real" in name else "bi", 2 if name[:2] == "es" else 1)
    else:
        assert config.variant == name.removeprefix("variant_") and recipe.keys() == {"model", "trainer"}
    if name.startswith("bi_"):
        assert sum(p.numel() for p in network.parameters()) == 51_280_387


@pytest.mark.slow
def test_the_data_file_names_the_published_sets_and_ema_is_added(tmp_path: Path) -> None:
    data = SRDataModule(**yaml.safe_load((CONFIGS / "data_df2k.yaml").read_text())["data"])
    assert data.lists["train"] == ("DF2K",) and data.test_names == ("Set5", "B100", "Urban100", "Manga109")
    sets = write_sets(tmp_path / "sets")
    small = [f"--data.root={sets}", "--data.train=[pieces]", "--data.val=[small]"]
    more = ["--config", str(CONFIGS / "ema.yaml"), *TWO_LEVELS]
    assert smoke(tmp_path / "run", "fit", *more, *small) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert "current_model_state" in last and any("MovingAverage" in key for key in last["callbacks"])
    assert any("ModelCheckpoint" in key for key in last["callbacks"])
