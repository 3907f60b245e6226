"""Every command on every kind of broken input: one sentence on stderr, exit code 2, no traceback and no new file."""

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from esbnn_core import create_model, pack_, save_checkpoint
from esbnn_core.checkpoint.official import to_official
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

ROOT = Path(__file__).parents[1]
Walk = Callable[..., str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of every kind, whole and broken."""
    folder = tmp_path_factory.mktemp("files")
    model = create_model("es_reactnet_resnet8", in_channels=1)
    save_checkpoint(model, folder / "latent.safetensors")
    save_checkpoint(torch.nn.Linear(3, 3), folder / "nameless.safetensors")
    save_checkpoint(pack_(model), folder / "packed.safetensors")
    save_file({"a": torch.zeros(3)}, folder / "foreign.safetensors")
    other = create_model("recu_resnet20")
    state = {f"network.{key}": tensor for key, tensor in other.state_dict().items()}
    torch.save({"pytorch-lightning_version": L.__version__, "state_dict": state}, folder / "run.ckpt")
    torch.save(to_official(other), folder / "official.pth")
    torch.save([1, 2], folder / "list.pth")
    (folder / "object.pth").write_bytes(pickle.dumps(Path("x")))
    for name in ("latent.safetensors", "run.ckpt", "official.pth"):
        whole = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
        (folder / f"flipped_{name}").write_bytes(whole[:-999] + bytes([whole[-999] ^ 1]) + whole[-998:])
    texts = {
        **{
            "empty": "",
            "text.txt": "hello",
            "broken.yaml": "model: [a\n  b: {",
            "list.yaml": "- a\n",
            "broken.json": "{",
        },
        **{"deep.json": "[" * 100_000, "tag.yaml": "model: !!python/object/apply:os.getcwd []", "3.yaml": "3"},
        **{"types.yaml": "model: 3\ndata: [1]\ntrainer: x", "manifest.json": json.dumps({"checkpoints": 3})},
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes("model: {network: café}".encode("latin-1"))
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling.ckpt").symlink_to("nowhere")
    images = folder / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    whole = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(whole[:300] + bytes(600) + whole[900:])
    return folder


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Walk]:
    """Runs a command in an empty folder and returns the one sentence that it must end with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])  # LightningCLI warns of arguments beside those of the process

    def call(command: Callable[[list[str]], int], *words: str) -> str:
        capfd.readouterr()
        try:
            code = command(list(words))
        except SystemExit as stop:
            code = stop.code  # argparse
        error = capfd.readouterr().err
        told = [line for line in error.splitlines() if line.startswith("error: ") or ": error: " in line]
        assert code == 2 and told and "Traceback" not in error, (words, code, error[-500:])
        assert len(told) == 1 and len(told[0]) < 1000, (words, told)
        left = [path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts]
        assert not left, (words, left)
        return told[0]

    yield call


def classify(words: list[str]) -> int:
    return run(ClassificationModule, ClassificationDataModule, words)


def detect(words: list[str]) -> int:
    return run(DetectionModule, VOCDataModule, words)


def upscale(words: list[str]) -> int:
    return run(SuperResolutionModule, SRDataModule, words, links=("scale",))


WRONG = (
    *("empty", "text.txt", "broken.yaml", "list.yaml", "deep.json", "latin.yaml", "folder", "loop", "dangling.ckpt"),
    *("images/0.png", "missing.safetensors", "missing.ckpt", "nameless.safetensors", "foreign.safetensors", "list.pth"),
    *("object.pth", "cut_latent.safetensors", "flipped_latent.safetensors", "cut_run.ckpt", "flipped_run.ckpt"),
    *("cut_official.pth", "flipped_official.pth", "run.ckpt", "text.txt/x.safetensors", "x" * 300),
)


def test_esbnn_and_evaluate_on_the_wrong_file(files: Path, walk: Walk) -> None:
    for name in (*WRONG, "packed.safetensors", "official.pth"):
        walk(esbnn, "pack", str(files / name), "out.safetensors")
    for name in (*WRONG, "latent.safetensors/x"):
        walk(evaluate, str(files / name), "--dataset", "fashion_mnist_mini", "--limit", "4", "--workers", "0")
    for name in ("empty", "broken.json", "deep.json", "latin.yaml", "manifest.json", "folder", "missing"):
        walk(evaluate, "--list", "--catalogue", str(files / name))
    for out in ("text.txt/x", "folder", "x" * 300, "latent.safetensors"):
        walk(esbnn, "pack", str(files / "latent.safetensors"), str(files / out))


@pytest.mark.parametrize(
    "words",
    [
        *([], ["frobnicate"], ["pack", "a"], ["doctor", "x"], ["count"], ["count", "--all", "x"], ["count", ""]),
        *(["models", "es_reactnet_resnet8 "], ["count", "es_reactnt_resnet8"], ["count", "x" * 300]),
        *(["count", "binaryvit", "--size", "100"], ["count", "bidet_vgg16", "--num-classes", "3"]),
        *(
            ["count", "es_reactnet_resnet8", f"--{option}", value]
            for option in ("tau", "groups", "num-classes", "in-channels", "size")
            for value in ("0", "-1", "nan", "1e3", "x", "1" + "0" * 20)
        ),
    ],
    ids=" ".join,
)
def test_esbnn_on_wrong_words(walk: Walk, words: list[str]) -> None:
    walk(esbnn, *words)


@pytest.mark.slow
def test_evaluate_and_reproduce_on_wrong_words(files: Path, walk: Walk) -> None:
    packed = [str(files / "packed.safetensors"), "--dataset", "fashion_mnist_mini", "--workers", "0"]
    for option, *values in (
        *(("limit", "-1", "x"), ("batch-size", "0", "-3", "1" + "0" * 20), ("image-size", "0", "-5", "1" + "0" * 20)),
        *(("crop-pct", "0", "nan", "-1", "1e9"), ("mean", "nan", "inf"), ("std", "0", "nan", "-1", "inf")),
        *(("backend", "latent", "x"), ("tau", "2"), ("model", "nope", "reactnet_resnet8"), ("device", "tpu")),
        *(("json", "", str(files / "folder"), str(files / "text.txt" / "x")), ("entry", "nope", "es_bnext_tiny")),
        *(("config", "missing"), ("tolerance", "1"), ("split", "val"), ("dataset", "fashion", "cifar10", "Set5")),
        ("workers", "-1", "1" + "0" * 20),
    ):
        for value in values:
            walk(evaluate, *packed, f"--{option}", value)
    for word in ("nope", "reactnet_resnet8_fashio", "https://", "ftp://x/y.pth", "http://a b/x.pth", "bnext_tiny"):
        walk(evaluate, word)
    for name in ("list.yaml", "broken.yaml", "deep.json", "folder", "missing"):
        walk(evaluate, packed[0], "--task", "detection", "--config", str(files / name))
    for words in (
        *([], ["nope"], ["imagenet", "--mode", "nope"], ["imagenet", "--out", str(files / "text.txt")]),
        *(["imagenet", "--out", str(files / "text.txt" / "x")], ["imagenet", "--tables", "missing"]),
        *(["imagenet", "--tables", str(files / "folder")], ["imagenet", "--seeds", "1"], ["ops", "--mode", "train"]),
        *(["figure1", "--mode", "proxy", "--seeds", seed] for seed in ("-1", "x", "1" + "0" * 20)),
        *(["figure1", "--mode", "proxy", "--jobs", jobs] for jobs in ("0", "x", "1" + "0" * 20)),
        *(["imagenet", "--mode", mode, "--rows", "nope"] for mode in ("eval", "train")),
        ["imagenet", "--mode", "train", "--dry-run", "--trainer", "missing"],
    ):
        walk(reproduce, *words)
    walk(demo.main, "--out", str(files / "text.txt"))
    walk(demo.main, "--out", str(files / "text.txt" / "x"))


RECIPE = """
model: {network: es_reactnet_resnet8, network_options: {in_channels: 1}}
data: {batch_size: 16, train_size: 32, val_size: 16, test_size: 16}
trainer: {accelerator: cpu, devices: 1, max_steps: 1, enable_progress_bar: false, enable_model_summary: false}
"""
QUICK = [  # (subcommand, words); FILES/ is the folder of broken files
    ("fit", ["--data.batch_size=0"]),
    ("fit", ["--seed_everything=-1"]),
    ("fit", ["--model.weights=FILES/packed.safetensors"]),
    ("test", []),
    ("test", ["--ckpt_path=FILES/run.ckpt"]),
    ("predict", ["--model.weights=FILES/latent.safetensors", "--model.predictions=FILES/text.txt"]),
    ("predict", ["--model.weights=FILES/latent.safetensors", "--data.predict=FILES/images"]),
]
LONG = [
    *(("test", [f"--ckpt_path=FILES/{name}"]) for name in ("empty", "loop", "cut_run.ckpt", "official.pth")),
    *(("test", [f"--model.weights=FILES/{name}"]) for name in ("empty", "run.ckpt", "flipped_latent.safetensors")),
    *(("fit", [f"--config=FILES/{name}"]) for name in ("broken.yaml", "deep.json", "latin.yaml", "types.yaml")),
    *(
        ("fit", [f"--data.{words}"])
        for words in ("num_workers=100000", "val_size=-1", "image_size=x", "batch_size=nan")
    ),
    *(("fit", [f"--trainer.{name}=x"]) for name in ("precision", "strategy")),
    *(("fit", [f"--model.network_options={value}"]) for value in ("{tau: x}", "{num_classes: 3}")),
    *(("fit", [f"--data.augmentation.{value}"]) for value in ("mean=[.nan]", "crop_pct=nan")),
    *(("test", ["--ckpt_path="]), ("test", ["--ckpt_path=FILES/folder"]), ("validate", [])),
]


def walk_classification(files: Path, walk: Walk, cases: list[tuple[str, list[str]]]) -> None:
    (files / "recipe.yaml").write_text(RECIPE)
    for command, words in cases:
        given = [word.replace("FILES", str(files)) for word in words]
        walk(classify, command, f"--config={files / 'recipe.yaml'}", f"--data.root={files / 'data'}", *given)


@pytest.mark.slow
def test_classification_on_broken_input(files: Path, walk: Walk) -> None:
    walk_classification(files, walk, QUICK)


@pytest.mark.slow
def test_classification_on_more_broken_input(files: Path, walk: Walk) -> None:
    walk_classification(files, walk, LONG)


@pytest.mark.slow
def test_detection_and_super_resolution_on_broken_input(files: Path, walk: Walk) -> None:
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    smoke = f"--config={ROOT}/configs/detection/smoke.yaml"
    tiny = [smoke, f"--model.model={TINY}", f"--data.pipeline={TINY}", f"--data.root={EMBEDDED}", *quiet]
    for command, word in (
        ("test", f"--ckpt_path={files}/run.ckpt"),
        ("fit", "--data.num_workers=-1"),
        ("fit", f"--model.model={files}/broken.yaml"),
        ("predict", f"--data.predict={files}/folder"),
    ):
        walk(detect, command, *tiny, word)
    recipes = [f"--config={ROOT}/configs/super_resolution/{name}.yaml" for name in ("es_bi_diffsr_x2", "smoke")]
    small = [*recipes, f"--data.root={ROOT}/tests/data/sr", *quiet]
    for command, word in (
        ("test", f"--ckpt_path={files}/run.ckpt"),
        ("fit", "--data.batch_size=0"),
        ("test", f"--model.weights={files}/latent.safetensors"),
    ):
        walk(upscale, command, *small, word)
