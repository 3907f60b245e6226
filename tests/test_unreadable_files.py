"""Files and folders that the user may not read or write: one sentence and exit code 2 from every command."""

import encodings.utf_8_sig
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from esbnn_core import create_model, save_checkpoint
from esbnn_core.cli import main as esbnn
from esbnn_core.lit.cli import run
from tasks.classification import demo
from tasks.classification.data import ClassificationDataModule
from tasks.classification.module import ClassificationModule
from tasks.detection.data import VOCDataModule
from tasks.detection.module import DetectionModule
from tasks.evaluate.command import main as evaluate
from tasks.reproduce.command import main as reproduce
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.module import SuperResolutionModule
from tests.helpers.detection.tiny import EMBEDDED, TINY
from tests.helpers.super_resolution.tiny import OPTIONS, write_sets

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a process that gives its rights away"),
]
NOBODY = 65534
assert encodings.utf_8_sig  # imported here, because the other user may not read Python's own files


def as_nobody(command: Callable[[list[str]], int], words: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and errors of a command that a user without rights runs in `folder`."""
    (folder / "err").touch()
    error = os.open(folder / "err", os.O_RDWR | os.O_TRUNC)
    child = os.fork()
    if not child:
        code = 99
        try:
            os.dup2(error, 1)
            os.dup2(error, 2)
            sys.stderr, sys.stdout = (os.fdopen(place, "w", buffering=1) for place in (2, 1))
            os.chdir(folder)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = command(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    os.close(error)
    return os.waitstatus_to_exitcode(status), (folder / "err").read_text()


def classify(words: list[str]) -> int:
    return run(ClassificationModule, ClassificationDataModule, words)


def detect(words: list[str]) -> int:
    return run(DetectionModule, VOCDataModule, words)


def upscale(words: list[str]) -> int:
    return run(SuperResolutionModule, SRDataModule, words, links=("scale",))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which everybody may read and write; those of tmp_path are its user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_what_may_not_be_read_or_written_is_one_sentence(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["test"])
    model = create_model("es_reactnet_resnet8", in_channels=1)
    save_checkpoint(model, shared / "weights.safetensors")
    torch.save({"pytorch-lightning_version": "2.6"}, shared / "last.ckpt")
    code, error = as_nobody(esbnn, ["pack", f"{shared}/last.ckpt", "out"], shared)
    assert code == 2 and "got a file of torch.save" in error, error  # what may be read is read
    (shared / "recipe.yaml").write_text("model: {network: es_reactnet_resnet8, network_options: {in_channels: 1}}")
    for name in ("weights.safetensors", "last.ckpt"):
        (shared / name).chmod(0)
    shutil.copytree(EMBEDDED, shared / "voc")
    annotations = shared / "voc" / "VOC2007" / "Annotations"
    for path in annotations.iterdir():
        path.chmod(0)
    sets = write_sets(shared / "sets")
    (sets / "pieces" / "pieces3.png").chmod(0)
    (shared / "images").mkdir(mode=0o644)  # its names can be listed, its files not opened
    (shared / "images" / "a.png").write_bytes((sets / "small" / "small0.png").read_bytes())
    (shared / "locked").mkdir(mode=0o555)
    ClassificationDataModule(root=str(shared / "data")).prepare_data()
    here, out = f"--config={shared}/recipe.yaml", f"{shared}/locked/out"
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    grey = [here, f"--data.root={shared}/data", *quiet]
    tiny = [f"--model.model={TINY}", "--model.from_scratch=true", f"--data.pipeline={TINY}", *quiet]
    voc = [f"--data.root={shared}/voc", "--data.train=[VOC2007/train]", "--data.val=[VOC2007/test]"]
    small = [f"--data.root={sets}", "--data.train=[pieces]", "--data.val=[small]", "--data.patch=16", *quiet]
    network = [f"--model.unet={OPTIONS}".replace("'", '"')]
    for command, words, named in (
        (esbnn, ["pack", f"{shared}/weights.safetensors", "out"], "weights.safetensors"),
        (esbnn, ["export", f"{shared}/last.ckpt", "out"], "last.ckpt"),
        (evaluate, [f"{shared}/weights.safetensors", "--dataset", "fashion_mnist_mini"], "weights.safetensors"),
        (reproduce, ["figure1", "--out", out], "locked"),
        (demo.main, ["--out", out], "locked"),
        (classify, ["fit", *grey, f"--trainer.default_root_dir={out}"], "trainer.default_root_dir"),
        (classify, ["fit", *grey, f"--ckpt_path={shared}/last.ckpt"], "last.ckpt"),
        (classify, ["test", *grey, f"--model.weights={shared}/weights.safetensors"], "weights.safetensors"),
        (detect, ["fit", *tiny, *voc, "--trainer.logger=false"], "Annotations"),
        (detect, ["predict", *tiny, f"--data.predict={shared}/images", "--trainer.logger=false"], "a.png"),
        (upscale, ["fit", *network, *small, "--trainer.logger=false"], "pieces3.png"),
    ):
        code, error = as_nobody(command, words, shared)
        told = [line for line in error.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(told) == 1 and "Traceback" not in error, (words, code, error[-800:])
        assert named in told[0] and len(told[0]) < 500, told
    assert not list((shared / "locked").iterdir()) and not (shared / "out").exists()
