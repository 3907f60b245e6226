"""`python -m tasks.detection`, in this process: fit to its files, test, predict, and errors of one sentence."""

import sys
from pathlib import Path

import pytest
import yaml

from esbnn_core.lit.cli import run
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule
from tests.helpers.detection.tiny import EMBEDDED, TINY

ROOT = Path(__file__).parents[3]
SMOKE = str(ROOT / "configs" / "detection" / "smoke.yaml")
TABLE = str(ROOT / "configs" / "detection" / "data_voc.yaml")


@pytest.fixture(autouse=True)
def no_words_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of arguments beside those of the process."""
    monkeypatch.setattr(sys, "argv", ["detection"])


def command(*words: str) -> int:
    return run(DetectionModule, VOCDataModule, list(words))


def smoke(folder: Path, name: str, *words: str) -> int:
    """The subcommand NAME with smoke.yaml around the tiny SSD, everything written under `folder`."""
    places = [f"--data.root={EMBEDDED}", f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    model = [f"--model.model={TINY}", f"--data.pipeline={TINY}"]
    return command(name, "--config", SMOKE, *model, *places, *quiet, *words)


@pytest.mark.slow
def test_fit_test_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke(tmp_path, "fit") == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["pipeline"] == TINY
    weights = tmp_path / "weights.safetensors"
    assert weights.is_file() and not (tmp_path / "packed.safetensors").exists()  # no binary layer
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    trained = ["--model.from_scratch=false", f"--model.weights={weights}"]
    assert smoke(tmp_path, "test", *trained) == 0
    by_file = capsys.readouterr().out.split("Test metric")[0]
    assert smoke(tmp_path, "test", "--model.from_scratch=false", f"--ckpt_path={checkpoint}") == 0
    assert capsys.readouterr().out.split("Test metric")[0] == by_file and "2 images; VOC mAP" in by_file
    images = str(EMBEDDED / "VOC2007" / "JPEGImages")
    assert smoke(tmp_path, "predict", *trained, f"--data.predict={images}", "--data.batch_size=5") == 0
    assert "12 images drawn" in capsys.readouterr().out
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 12
    assert (tmp_path / "predictions" / "predictions.json").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data.root=nowhere"], "nowhere has no folder VOC2007"),
        (["--model.from_scratch=false"], "the detector has no trained backbone to start from"),
        (["--model.model=gone.py"], "config gone.py does not exist"),
        (["--model.overrides={backbone.depth: 19}"], "model SingleStageDetector of the config cannot be built"),
        (
            ["--model.from_scratch=false", "--model.weights=gone.safetensors"],
            "checkpoint gone.safetensors does not exist",
        ),
        (["--data.train=[VOC2007/gone]"], "gone.txt does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert smoke(tmp_path, "fit", *words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and sentence in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_data_file_names_the_published_lists(tmp_path: Path) -> None:
    options = yaml.safe_load(Path(TABLE).read_text())["data"]
    data = VOCDataModule(**options, pipeline=TINY)
    assert data.lists["train"] == ("VOC2007/trainval", "VOC2012/trainval") and data.lists["test"] == ("VOC2007/test",)
