"""`python -m tasks.evaluate` of a detector and of a super-resolution network, latent and packed."""

import hashlib
import importlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from esbnn_core import save_checkpoint
from esbnn_core.checkpoint.catalogue import read_catalogue
from esbnn_core.checkpoint.official_keys import KEY_MAPS
from esbnn_core.packed.layers import is_packed
from tasks.detection.evaluation import METRICS
from tasks.detection.module import DetectionModule
from tasks.evaluate import dataset_sizes as evaluation_sizes
from tasks.super_resolution.metrics import psnr_y
from tests.helpers.catalogue import GIVEN, write
from tests.helpers.detection.tiny import EMBEDDED, TINY, make_detector
from tests.helpers.evaluation import failed, run
from tests.helpers.super_resolution.tiny import OPTIONS, make_module, make_sets, make_unet, write_sets


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four images of these tests are the whole set."""
    monkeypatch.setitem(evaluation_sizes.SIZES, ("VOC2007", "test"), 4)


def test_the_catalogue_names_families_that_the_tasks_declare() -> None:
    for task in ("detection", "super_resolution"):
        importlib.import_module(f"tasks.{task}.official")
    keys = {entry.keys for entry in read_catalogue() if entry.task != "classification" and not entry.ours}
    assert keys == {"bidet_ssd300", "bi_diffsr"} and keys <= set(KEY_MAPS)


BIDET = str(Path(TINY).parent / "tiny_bidet_ssd.py")


@pytest.fixture
def detector(tmp_path: Path, narrow_trunks: None) -> tuple[list[Any], nn.Module]:
    """Words that evaluate a small detector by name, and its network."""
    network = make_detector(model=BIDET, overrides={"bbox_head.in_channels": (128,)}).network
    save_checkpoint(network, tmp_path / "det.safetensors")
    config = tmp_path / "detection" / "tiny.yaml"
    config.parent.mkdir()
    config.write_text(f"model: {{model: {TINY}, from_scratch: true}}\ndata: {{pipeline: {TINY}, batch_size: 3}}\n")
    facts = {"name": "det", "task": "detection", "network": "tiny", "options": {}, "dataset": "VOC2007"}
    facts |= {"config": str(config), "metric": "map_11point", "value": 100, "file": "det.safetensors"}
    data = (tmp_path / "det.safetensors").read_bytes()
    facts |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    widths = "overrides: {bbox_head.in_channels: [128]}"
    config.write_text(config.read_text().replace(f"model: {TINY}", f"model: {BIDET}, {widths}"))
    manifest = write(tmp_path / "m.json", {**GIVEN, **facts})
    return ["det", "--catalogue", manifest, "--data", EMBEDDED, "--json", tmp_path / "r.json"], network


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["latent", "packed"])
def test_a_detector_by_name(
    detector: tuple[list[Any], nn.Module],
    backend: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, network = detector
    detect, seen = DetectionModule.detect, []

    def by_heart(self: DetectionModule, batch: Any) -> Any:
        """The objects themselves but those of the chair, after a look at the network that was asked."""
        samples = detect(self, batch)
        seen.append(self.network)
        for sample in samples:
            truth = sample.gt_instances
            truth = truth[truth.labels != 8]
            found = sample.pred_instances[:0].new()
            found.bboxes, found.labels = getattr(truth.bboxes, "tensor", truth.bboxes), truth.labels
            found.scores = torch.ones(len(truth))
            sample.pred_instances = found
        return samples

    monkeypatch.setattr(DetectionModule, "detect", by_heart)
    code, out, err = run(*words, "--backend", backend, capsys=capsys)
    assert code == 1, err  # four of the five classes
    result = json.loads(Path(words[-1]).read_text())
    assert result["measured"] == pytest.approx(80) and result["classes"]["chair"] == 0
    assert (result["images"], result["backend"], result["expected"]) == (4, backend, 100)
    assert set(result["metrics"]) == set(METRICS)
    assert "OUTSIDE" in out and result["ops"] == pytest.approx(result["bops"] / 64 + result["flops"])
    assert is_packed(seen[0]) is (backend == "packed") and len(seen) == 2
    kept = {key: tensor for key, tensor in seen[0].state_dict().items() if key.startswith("bbox_head.cls_convs")}
    assert kept and all(torch.equal(tensor, network.state_dict()[key]) for key, tensor in kept.items())
    code, _, _ = run(*words, "--limit", "2", capsys=capsys)
    assert code == 0 and json.loads(Path(words[-1]).read_text())["images"] == 2
    if backend == "packed":
        save_checkpoint(seen[0], words[2].parent / "packed.safetensors")
        config = words[2].parent / "detection" / "tiny.yaml"
        own = [words[2].parent / "packed.safetensors", "--config", config, *words[3:]]
        assert "is packed and holds no latent weights" in failed(*own, "--backend", "latent", capsys=capsys)
        code, _, err = run(*own, capsys=capsys)
        assert code == 0 and json.loads(Path(words[-1]).read_text())["backend"] == "packed", err
    assert "nowhere has no folder VOC2007" in failed(*words, "--data", "nowhere", capsys=capsys)
    # nothing is passed over in silence
    for given, told in (
        (["--image-size", "17"], "--image-size was given with a network of detection"),
        (["--tau", "4"], "--tau was given with the catalogue's det"),
        (["--dataset", "VOC2012"], "--dataset was given with the catalogue's det"),
        (["--batch-size", "0"], "batch"),
    ):
        assert told in failed(*words, *given, capsys=capsys)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["latent", "packed"])
def test_a_super_resolution_network_by_path(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sets = tmp_path / "sr.safetensors", write_sets(tmp_path / "sets")
    save_checkpoint(make_unet(), path)
    config = tmp_path / "super_resolution" / "tiny.yaml"
    config.parent.mkdir()
    unet = json.dumps(OPTIONS)
    config.write_text(f"model: {{unet: {unet}, num_inference_steps: 2}}\ndata: {{patch: 16, test: [small, odd]}}\n")
    words = [path, "--config", config, "--data", sets, "--json", tmp_path / "r.json", "--dataset", "odd"]
    code, out, err = run(*words, "--backend", backend, capsys=capsys)
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    # the images by the module's own sampling, judged one by one
    module, data = make_module(weights=str(path)), make_sets(sets, test=["odd"])
    data.setup("test")
    items = [item for batch in data.test_dataloader()[0] for item in batch]
    with torch.inference_mode():
        images = module.eval().upsample(items, "test")
    pixels = [(image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for image in images]
    want = np.mean([psnr_y(image, item.hr, 2) for image, item in zip(pixels, items, strict=True)])
    assert result["measured"] == pytest.approx(want, abs=0.02) and result["images"] == len(items) == 2
    assert (result["metric"], result["backend"], result["network"]) == ("psnr", backend, "tiny")
    assert f"metrics      psnr {result['measured']:.4g}, ssim" in out and "expected" not in out
    # by name, on the set of its entry and on another, of which nothing is expected
    facts = {"name": "sr", "task": "super_resolution", "network": "tiny", "options": {}, "dataset": "small"}
    facts |= {
        "config": str(config),
        "metric": "psnr",
        "value": 99,
        "file": "sr.safetensors",
        "bytes": path.stat().st_size,
    }
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    named = ["sr", "--catalogue", write(tmp_path / "m.json", {**GIVEN, **facts}), *words[3:7], "--backend", backend]
    assert run(*named, capsys=capsys)[0] == 1
    assert json.loads((tmp_path / "r.json").read_text())["dataset"] == "small"
    code, out, err = run(*named, "--dataset", "odd", capsys=capsys)
    assert code == 0 and "no value is known of odd" in out, err
    again = json.loads((tmp_path / "r.json").read_text())
    assert (again["name"], again["dataset"], again["expected"]) == ("sr", "odd", None)
    assert again["measured"] == pytest.approx(result["measured"])
    assert "must have a folder gone, gone/HR or gone_train_HR" in failed(*words[:-1], "gone", capsys=capsys)
    assert "was given without --dataset" in failed(*words[:-2], capsys=capsys)
    assert "--groups was given with a network of super_resolution" in failed(*words, "--groups", "2", capsys=capsys)
    assert "does not exist" in failed(path, "--config", "gone/super_resolution/x.yaml", *words[3:], capsys=capsys)
    assert "is not in a folder of a task: give --task" in failed(path, "--config", "gone.yaml", capsys=capsys)


def test_an_interruption_of_lightning_is_no_result(
    detector: tuple[list[Any], nn.Module], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning itself leaves with 1, which would say that the file misses its value."""

    def stopped(self: DetectionModule, batch: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(DetectionModule, "detect", stopped)
    before = signal.getsignal(signal.SIGINT)  # Lightning switches it off
    try:
        code, _, err = run(*detector[0], capsys=capsys)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and err.endswith("interrupted\n")
    assert not Path(detector[0][-1]).exists()


def test_an_evaluation_that_sigterm_ends_is_no_result(
    detector: tuple[list[Any], nn.Module], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = DetectionModule.detect

    def stopped(self: DetectionModule, batch: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, batch)

    monkeypatch.setattr(DetectionModule, "detect", stopped)
    with pytest.raises(SystemExit) as stop:
        run(*detector[0], capsys=capsys)
    assert stop.value.code == 143 and not Path(detector[0][-1]).exists()


def test_a_recipe_is_found_from_any_folder(
    detector: tuple[list[Any], nn.Module],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both the recipe and the mmdet config that it names: what is wrong is the file."""
    monkeypatch.chdir(tmp_path)
    words = ["det.safetensors", "--config", "configs/detection/bidet_ssd300.yaml", *detector[0][3:]]
    assert "does not fit the network" in failed(*words, capsys=capsys)
    assert "config configs/detection/gone.yaml does not exist" in failed(
        *words[:2], "configs/detection/gone.yaml", *words[3:], capsys=capsys
    )
