"""Our own released networks: each gives the accuracy that the catalogue says, is small, has its curve and config."""

import csv
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from PIL import Image

from benchmarks import releases
from benchmarks.releases import KINDS, SEEDS, Release, keep
from esbnn_core import count, create_model, load_checkpoint, model_spec
from esbnn_core.checkpoint.catalogue import FOLDER, Entry, read_catalogue
from esbnn_core.errors import InputError
from tasks.classification.datasets import dataset_info, open_split
from tasks.evaluate.command import evaluate_name, main
from tasks.evaluate.options import EvaluateRequest
from tasks.reproduce.modes import proxy_run

OWN = [entry for entry in read_catalogue() if entry.file is not None]
FIRST = {
    "reactnet_resnet8_fashion": 87.67,
    "rep_reactnet_resnet8_fashion": 90.33,
    "reactnet_resnet8_fashion_seed1": 89.33,
    "es_reactnet_resnet8_fashion_seed1": 89.00,
    "rep_reactnet_resnet8_fashion_seed1": 88.33,
    "reactnet_resnet8x4_cifar10": 86.33,
    "es_reactnet_resnet8x4_cifar10": 84.67,
    "rep_reactnet_resnet8x4_cifar10": 85.33,
    "reactnet_resnet8x4_cifar10_seed1": 86.33,
    "es_reactnet_resnet8x4_cifar10_seed1": 85.00,
    "rep_reactnet_resnet8x4_cifar10_seed1": 87.33,
}
"""Accuracy on the first 300 images alone: all images of every network would take half a minute.

That of all is near the last row of the run's curve, below.
"""

MOSAICS = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """CIFAR-10's test images as torchvision wants them; the five times as many to train on are not asked for."""
    if not (MOSAICS / "unpack.py").exists():
        pytest.skip("CIFAR-10 is not beside the repository (../shared/data/cifar10)")
    folder = tmp_path_factory.mktemp("cifar")
    limit = Image.MAX_IMAGE_PIXELS
    unpack = runpy.run_path(str(MOSAICS / "unpack.py"))
    for name in unpack["MD5"].keys() - {"test_batch"}:
        del unpack["MD5"][name]
    unpack["main"](folder)
    Image.MAX_IMAGE_PIXELS = limit  # the script lifts it for the whole process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.CIFAR10, "train_list", [])
        yield str(folder)


def test_there_are_some_and_they_are_small() -> None:
    assert {"reactnet_resnet8_fashion", "es_reactnet_resnet8_fashion", "rep_reactnet_resnet8_fashion"} <= {
        entry.name for entry in OWN
    }
    sizes = [(FOLDER / str(entry.file)).stat().st_size for entry in OWN]
    assert max(sizes) <= 1_000_000 and sum(sizes) <= 8_000_000


@pytest.mark.slow
@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_its_accuracy_is_the_catalogues(entry: Entry, data_root: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("cifar") if entry.dataset == "cifar10" else data_root
    limit = 300 if entry.name in FIRST else 0
    # batches whose maps stay in the cache
    result = evaluate_name(entry.name, data=root, batch_size=100, workers=0, limit=limit)
    assert result["backend"] == "packed"
    if limit:
        assert (result["images"], result["within"]) == (limit, None)
        # but for one image that another processor sees
        assert result["measured"] == pytest.approx(FIRST[entry.name], abs=101 / limit)
        return
    assert result["within"] is True
    assert (entry.dataset, result["images"]) == ("fashion_mnist_mini", 3000)
    assert result["measured"] == pytest.approx(entry.value, abs=0.1)


@pytest.mark.slow
def test_the_normalisation_of_cifar10_is_that_of_its_images(cifar: str) -> None:
    """Those of the 10,000 test images differ from the training images' by less than 0.01."""
    images = torch.from_numpy(open_split("cifar10", cifar, train=False).data) / 255
    info = dataset_info("cifar10")
    for found, stated in ((images.mean((0, 1, 2)), info.mean), (images.std((0, 1, 2)), info.std)):
        torch.testing.assert_close(found, torch.tensor(stated), rtol=0, atol=0.01)


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: entry.name)
def test_its_config_and_curve_are_those_of_the_run(entry: Entry) -> None:
    folder = (FOLDER / str(entry.file)).parent
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["network"] == entry.network
    held = load_checkpoint(FOLDER / str(entry.file)).model_spec
    assert {key: held.options[key] for key in entry.options} == dict(entry.options)
    with (folder / "metrics.csv").open(newline="") as file:
        seen = [row for row in csv.DictReader(file) if row["val_top1"]]
    # the last epoch's weights, and the run ended; a GPU rounds the real layers to TF32, which turns signs of few images
    trainer = config["trainer"]
    every, missing = trainer["check_val_every_n_epoch"], trainer["max_epochs"] - 1 - int(seen[-1]["epoch"])
    assert 0 <= missing < every
    # where the last epoch was not validated, the rate had come down to 1 % of its peak before it
    assert float(seen[-1]["val_top1"]) == pytest.approx(entry.value, abs=0.5 if missing else 0.2)


def test_a_damaged_release_is_refused_before_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FOLDER, tmp_path / "checkpoints")
    target = tmp_path / "checkpoints" / str(OWN[0].file)
    whole = target.read_bytes()
    for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        target.write_bytes(damaged)
        words = [OWN[0].name, "--catalogue", str(tmp_path / "checkpoints" / "manifest.json"), "--data", str(tmp_path)]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: checkpoint ") and error.count("\n") == 1
    with pytest.raises(InputError, match=r"nearest: .*es_reactnet_resnet8_fashion"):
        evaluate_name("es_reactnet_resnet8_fashio", data=str(tmp_path))


@pytest.mark.parametrize("page", ["README.md", "docs/reports/evidence.md"])
def test_the_table_of_a_page_is_the_catalogues(page: str) -> None:
    text = (FOLDER.parent / page).read_text()
    table = text.split("<!-- releases -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.strip("|").split("|")[1:]] for line in table}
    assert list(rows) == [entry.name for entry in OWN if "_seed" not in entry.name]
    for name, (values, ops, _, size) in rows.items():
        entries = [entry for entry in OWN if entry.name == name or entry.name.startswith(f"{name}_seed")]
        assert values == ", ".join(f"{entry.value:.2f}" for entry in entries) and size == f"{entries[0].bytes:,} bytes"
        network = load_checkpoint(FOLDER / str(entries[0].file))
        side = 28 if network.model_spec.input_size[0] == 1 else 32
        assert ops == f"{count(network, (network.model_spec.input_size[0], side, side)).ops:,.0f}"
    # base and ES cost the same
    pairs = [(rows[name][1:3], rows[f"es_{name}"][1:3]) for name in rows if f"es_{name}" in rows]
    assert len(pairs) == 2 and all(base == es for base, es in pairs)


def test_a_release_is_made_by_its_command_and_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_recipes = [entry for entry in OWN if entry.config == "configs/releases/fashion.yaml"]
    made = [Release("fashion", prefix, seed) for seed in SEEDS for prefix in KINDS]
    assert {r.name: r.command() for r in made} == {entry.name: entry.command for entry in of_recipes}
    with pytest.raises(InputError, match=r"es_.*seed1 must have packed.safetensors, got none"):
        keep([Release("fashion", "es_", 1)], tmp_path, "data")
    # one run's files taken over again, into a catalogue that holds another value of it
    shutil.copytree(FOLDER, tmp_path / "checkpoints")
    home, release = tmp_path / "checkpoints", made[0]
    monkeypatch.setattr(releases, "FOLDER", home)
    monkeypatch.setattr(releases, "CATALOGUE", home / "manifest.json")
    before = (home / "manifest.json").read_text()
    (home / "manifest.json").write_text(before.replace(str(read_catalogue().find(release.name).value), "12.5"))
    measured = []

    def evaluate(request: EvaluateRequest) -> dict[str, Any]:
        measured.append(request)
        return whole(replace(request, limit=60))

    whole = releases.evaluate
    monkeypatch.setattr(releases, "evaluate", evaluate)
    keep([release], FOLDER, "data")
    (asked,), after = measured, read_catalogue(home / "manifest.json")
    entry, old = after.find(release.name), read_catalogue().find(release.name)
    assert Path(asked.target).parent.name == release.name and entry.value != 12.5
    # options that are younger than the file are at their defaults
    spec = model_spec(create_model(old.network, **old.options))
    assert spec is not None and entry.options == dict(spec.options)
    assert replace(entry, value=old.value, options=old.options) == old
    assert [e.name for e in after] == [e.name for e in read_catalogue()]


def test_a_release_is_trained_once_and_a_failed_run_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release, asked = Release("cifar10", "rep_", 1), []

    def run(words: list[str], **options: Any) -> int:
        asked.append((words, options["env"]["OMP_NUM_THREADS"]))
        folder = Path(words[words.index("--trainer.default_root_dir") + 1])
        if len(asked) == 2:
            (folder / "packed.safetensors").write_bytes(b"")
        return 3 if len(asked) == 1 else 0

    monkeypatch.setattr(proxy_run, "run_child", run)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with pytest.raises(InputError, match=r"exit code 3, its log .*rep_reactnet_resnet8x4_cifar10_seed1/log.txt says: "):
        releases.train(release, tmp_path, "data", 2)
    for _ in range(2):
        releases.train(release, tmp_path, "data", 2)
    assert capsys.readouterr().out.split() == [f"{release.name}:", "trained", f"{release.name}:", "there"]
    assert len(asked) == 2 and {threads for _, threads in asked} == {"4"}
    words = asked[0][0]
    assert words[:4] == ["-m", "tasks.classification", "fit", "-c"] and "configs/start_channels.yaml" in words
