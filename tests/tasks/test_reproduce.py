"""python -m tasks.reproduce: what eval says of each cell, what one folder gathers, what the command line refuses.

Evaluations and proxies here are stand-ins, made by hand: they test what becomes of a result, not how one comes about.
"""

import csv
import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from esbnn_core import InputError
from esbnn_core.files import ROOT
from tasks.reproduce import command as reproduce
from tasks.reproduce.modes import results
from tasks.reproduce.modes.evaluation import evaluate_tables, read_evaluated
from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.report import folder
from tests.helpers.tables import COST, PROXIES, Parts, table


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cost for every row."""
    monkeypatch.setattr(results, "count_row", lambda row: COST)


def result(name: str, dataset: str, metrics: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Stand-in for what tasks.evaluate.evaluate_name gives."""
    made = {"name": name, "dataset": dataset, "metrics": metrics, "sha256": "ab" * 32, "images": 10_000}
    made |= {"file": f"/files/{name}.pth", "backend": "latent", "expected": None, "within": None, "tolerance": 0.1}
    return {**made, "warning": "", "whole": True, **changes}


@pytest.fixture
def catalogue(tmp_path: Path) -> Callable[..., Path]:
    """The real catalogue with entries whose files can be fetched, so that nothing but data is missing."""

    def make(access: str = "direct") -> Path:
        body = json.loads((ROOT / "checkpoints" / "manifest.json").read_text())
        for entry in body["checkpoints"]:
            if entry["url"]:
                entry["access"] = access
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(body))
        return path

    return make


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Folders that look like CIFAR-10, Manga109 and B100."""
    (tmp_path / "data" / "sr" / "benchmark" / "BSD100").mkdir(parents=True)
    (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "data" / "sr" / "Manga109").mkdir(parents=True)
    return str(tmp_path / "data")


def test_what_is_present_is_measured_and_kept(tmp_path: Path, catalogue: Any, data: str) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def evaluate(name: str, **options: Any) -> dict[str, Any]:
        asked.append((name, options))
        if name == "bi_diffsr_x2":
            dataset = options.get("dataset", "Manga109")
            psnr = {"Manga109": 33.9, "B100": 32.1}[dataset]
            return result(name, dataset, {"psnr": psnr, "ssim": 0.96, "lpips": "no weights at hand"})
        return result(name, "cifar10", {"top1": 86.0}, expected=87.5, within=False, warning="a warning")

    tables = [table("cifar10"), table("sr"), table("figure1")]
    found = evaluate_tables(tables, tmp_path, data, evaluate=evaluate, catalogue=catalogue(), device="cpu")
    # each checkpoint once on each dataset that is there, with its own folder
    assert [(name, options.get("dataset")) for name, options in asked] == [
        ("recu_resnet20_cifar10", None),
        *((f"bi_diffsr_x{scale}", dataset) for scale in (2, 4) for dataset in ("B100", None)),
    ]
    assert asked[0][1] == {"data": data, "device": "cpu"} and asked[1][1]["data"] == f"{data}/sr"
    cell = found["recu_resnet20", "CIFAR-10", "top1"]
    assert cell.value == 86.0 and "sha256 abababababab, 10,000 images" in cell.source
    assert "OUTSIDE the entry's tolerance of 0.1 around 87.5" in cell.source and "a warning" in cell.source
    assert [found["bi_diffsr_x2", "Manga109", m].value for m in ("PSNR_dB", "SSIM", "LPIPS")] == [33.9, 0.96, None]
    assert found["bi_diffsr_x2", "Manga109", "LPIPS"].missing == (
        "LPIPS was not measured on Manga109: no weights at hand",
    )
    assert found["bi_diffsr_x2", "B100", "PSNR_dB"].value == 32.1
    (set5,) = found["bi_diffsr_x2", "Set5", "PSNR_dB"].missing
    assert set5.startswith(f"Set5 is not at {data}/sr/Set5: download")
    # a later run in another mode shows them again
    again = read_evaluated([table("figure1"), table("cifar10")], tmp_path, data)
    assert again == {
        ("bi_diffsr_x2", "Manga109", "PSNR_dB"): found["bi_diffsr_x2", "Manga109", "PSNR_dB"],
        ("recu_resnet20", "CIFAR-10", "top1"): cell,
    }
    path = tmp_path / "evaluated" / "recu_resnet20_cifar10-cifar10.json"
    good = json.loads(path.read_text())
    path.write_text("{}")
    with pytest.raises(InputError, match=r"recu_resnet20_cifar10-cifar10\.json is not a result .* remove it"):
        read_evaluated([table("cifar10")], tmp_path, data)
    # nor is that of another file, or of a part of the images
    for change in ({"name": ""}, {"name": "recu_resnet18_cifar10"}, {"dataset": "fashion_mnist"}):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match="must be a result of recu_resnet20_cifar10 on cifar10, got one of"):
            read_evaluated([table("cifar10")], tmp_path, data)
    path.write_text(json.dumps({**good, "whole": False}))
    assert ("recu_resnet20", "CIFAR-10", "top1") not in read_evaluated([table("cifar10")], tmp_path, data)
    # the table of operations shows none
    assert read_evaluated([table("ops")], tmp_path, data) == {}


def test_a_part_of_the_images_is_no_value(tmp_path: Path, catalogue: Any, data: str) -> None:
    def evaluate(name: str, **options: Any) -> dict[str, Any]:
        return result(name, "cifar10", {"top1": 90.0}, expected=87.5, whole=False)

    found = evaluate_tables([table("cifar10")], tmp_path, data, evaluate=evaluate, catalogue=catalogue())
    cell = found["recu_resnet20", "CIFAR-10", "top1"]
    assert cell.value is None and "a part of CIFAR-10" in cell.missing[0]


def test_with_nothing_at_hand_every_cell_says_what_it_lacks(tmp_path: Path) -> None:
    """The real catalogue and no data: no evaluation is tried, nothing fails, nothing is written."""

    def evaluate(name: str, **options: Any) -> dict[str, Any]:
        raise AssertionError(f"{name} cannot be evaluated here")

    tables = [table(name) for name in ("figure1", "imagenet", "cifar10", "voc", "sr", "ablation")]
    found = evaluate_tables(tables, tmp_path, str(tmp_path / "nowhere"), evaluate=evaluate)
    cells = {
        (row.name, d, m) for one in tables for row in one.rows for d, metrics in row.cells.items() for m in metrics
    }
    assert set(found) == cells and not (tmp_path / "evaluated").exists()
    for (name, dataset, _), cell in found.items():
        assert cell.value is None and cell.missing, name
        told = "; ".join(cell.missing)
        assert f"{dataset} is not at {tmp_path}/nowhere/" in told or "no recipe for it here" in told
    told = found["es_bnext_tiny", "ImageNet-1k", "top1"].missing
    assert "unpack it into train/WNID and val/WNID there" in told[0] and "--entry es_bnext_tiny" in told[1]
    assert found["es_binaryvit", "ImageNet-1k", "top1"].missing[0] == "no file is released: the row's command trains it"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("checkpoint x has sha256 1, 2 was expected: fetch it again"), "has sha256 1"),
        (FileNotFoundError("no such file"), "no such file"),
        (ModuleNotFoundError("No module named 'timm'", name="timm"), "package timm is not installed: pip install"),
    ],
)
def test_an_evaluation_that_cannot_be_is_a_sentence(
    tmp_path: Path, catalogue: Any, data: str, error: Exception, sentence: str
) -> None:
    def evaluate(name: str, **options: Any) -> dict[str, Any]:
        raise error

    found = evaluate_tables([table("cifar10")], tmp_path, data, evaluate=evaluate, catalogue=catalogue())
    assert sentence in found["recu_resnet20", "CIFAR-10", "top1"].missing[0]


def test_a_file_that_a_person_downloaded_is_looked_at(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real catalogue, whose files lie behind pages, with one of them in the cache and the others not."""
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "checkpoints").mkdir(parents=True)
    (tmp_path / "cache" / "checkpoints" / "recu_resnet20_cifar10.pth").write_bytes(b"x")
    asked = []

    def evaluate(name: str, **options: Any) -> dict[str, Any]:
        asked.append(name)
        return result(name, "cifar10", {"top1": 87.4}, expected=87.5, within=True)

    found = evaluate_tables([table("cifar10"), table("sr")], tmp_path, data, evaluate=evaluate)
    assert asked == ["recu_resnet20_cifar10"] and found["recu_resnet20", "CIFAR-10", "top1"].value == 87.4
    assert "can only be downloaded from a web page" in found["bi_diffsr_x2", "Manga109", "SSIM"].missing[0]


def test_a_file_that_this_project_cannot_read_is_asked_of_nobody(
    tmp_path: Path, catalogue: Any, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache or not, by hand or fetched: no command that could not work, but the recipe's where there is one."""
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "checkpoints").mkdir(parents=True)
    (tmp_path / "cache" / "checkpoints" / "recu_resnet18_cifar10.pth").write_bytes(b"x")
    (tmp_path / "data" / "imagenet" / "val").mkdir(parents=True)
    tables = [table("cifar10"), table("imagenet")]
    for access in ("page", "direct"):
        asked: list[str] = []

        def evaluate(name: str, asked: list[str] = asked, **options: Any) -> dict[str, Any]:
            asked.append(name)
            raise InputError("no file")

        found = evaluate_tables(tables, tmp_path, data, evaluate=evaluate, catalogue=catalogue(access))
        for row, dataset, name in (
            ("recu_resnet18", "CIFAR-10", "recu_resnet18_cifar10"),
            ("recu_resnet18", "ImageNet-1k", "recu_resnet18"),
            ("recu_resnet34", "ImageNet-1k", "recu_resnet34"),
        ):
            (told,) = found[row, dataset, "top1"].missing
            assert told.startswith(f"file {name} is released but cannot be read by this project: The README links")
            assert "tasks.evaluate" not in told and told.endswith("the file cannot be read yet") and name not in asked
    commands = {
        (one.name, line.name): line.command
        for one in tables
        for line in results.make_cells(one, {}, data)
        if line.dataset
    }
    assert commands["cifar10", "recu_resnet18"] == commands["imagenet", "recu_resnet34"] == ""
    assert commands["imagenet", "recu_resnet18"].startswith("python -m tasks.reproduce imagenet --mode train --rows")
    assert commands["cifar10", "recu_resnet20"].startswith("python -m tasks.evaluate recu_resnet20_cifar10")


@pytest.mark.slow
def test_one_folder_gathers_what_several_runs_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ops of two tables, then proxies: one report of all; the room that trains proxies is replaced by a stand-in."""
    trained: list[tuple[str, Path, str, Any]] = []
    room = types.ModuleType("tasks.reproduce.modes.proxy")

    def run_proxy(system: str, out: Path, *, data: str, seeds: Any, jobs: int, only: Any) -> list[ProxyResult]:
        assert jobs == 1 and only == ()
        trained.append((system, out, data, seeds))
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{system}.json").write_text("[]")
        return []

    room.run_proxy, room.read_proxy_results = run_proxy, lambda out: PROXIES  # type: ignore[attr-defined]
    room.describe_lacking, room.gather_proxy = lambda system, out, **options: "", lambda system, out: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tasks.reproduce.modes.proxy", room)
    monkeypatch.setattr(folder, "predictions_folder", lambda row: tmp_path / row.name)
    (tmp_path / "bidet_faster_rcnn_r18").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "bidet_faster_rcnn_r18" / "street.png")
    out = tmp_path / "out"
    assert reproduce.main(["cifar10", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"cifar10.md", "cifar10.csv", "cifar10.json", "report.html"}
    assert reproduce.main(["figure1", "--out", str(out), "--mode", "proxy", "--seeds", "0", "2", "--data", "/d"]) == 0
    systems = ("reactnet", "bnext", "binaryvit", "bidet", "bidiffsr")
    assert trained == [(system, out / "proxy", "/d", [0, 2]) for system in systems]
    names = {p.name for p in out.iterdir()} - {"proxy", "cifar10.md", "cifar10.csv", "cifar10.json", "report.html"}
    assert names == {
        *("figure1.md", "figure1.csv", "figure1.json", "figure1.png"),
        *("proxies.md", "proxies.csv", "proxies.png", "ablation.png", "pictures_bidet.png"),
    }
    # a table without detectors of its own does not lose them from the report
    assert reproduce.main(["cifar10", "--out", str(out)]) == 0
    parts = Parts()
    parts.feed((out / "report.html").read_text())
    assert list(parts.text) == ["", "figure1", "cifar10", "proxies", "pictures"] and len(parts.images) == 4
    assert "street" in parts.text["pictures"]
    records = list(csv.DictReader(io.StringIO((out / "proxies.csv").read_text())))
    assert [float(r["value"]) for r in records] == [value for row in PROXIES for value in row.values]
    for name in ("figure1.md", "figure1.csv", "figure1.json"):
        assert "80.12" not in (out / name).read_text()
    assert "report.html: figure1, cifar10" in capsys.readouterr().out


def test_eval_shows_an_earlier_value_where_there_is_none_now(tmp_path: Path, data: str) -> None:
    (tmp_path / "evaluated").mkdir()
    path = tmp_path / "evaluated" / "recu_resnet20_cifar10-cifar10.json"
    path.write_text(json.dumps(result("recu_resnet20_cifar10", "cifar10", {"top1": 87.6}, expected=87.5, within=True)))
    assert reproduce.main(["cifar10", "--mode", "eval", "--out", str(tmp_path), "--data", data]) == 0
    by_name = {line["name"]: line for line in json.loads((tmp_path / "cifar10.json").read_text())["lines"]}
    assert by_name["recu_resnet20"]["ours"] == 87.6
    assert "measured earlier, not now: file recu_resnet20_cifar10" in by_name["recu_resnet20"]["ours_from"]
    assert by_name["recu_resnet18"]["ours"] is None and by_name["recu_resnet18"]["missing"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["voc", "--seeds", "1"], "--seeds must be given with --mode train or proxy, got --mode ops"),
        (
            ["voc", "--rows", "x", "--mode", "eval"],
            "--rows must be rows of the tables asked for (bidet",
        ),
        (["voc", "--dry-run"], "--dry-run must be given with --mode train, got --mode ops"),
        (["study", "--systems", "start"], "--systems must be given with --mode proxy, got --mode ops"),
        (["study", "--variants", "es"], "--variants must be given with --mode proxy, got --mode ops"),
        (
            ["voc", "--mode", "train", "--seeds", "1", "1"],
            "--seeds must be different numbers from 0 to 4294967295, got",
        ),
        (["ops", "--mode", "train"], "table ops has no row with a recipe: there is nothing to train"),
        (["voc", "--mode", "proxy", "--jobs", "0"], "--jobs must be a whole number of at least 1, got 0"),
        (["ops", "--mode", "proxy"], "table ops has no proxy comparison"),
        (["voc", "--mode", "train", "--trainer", "no.yaml"], "--trainer no.yaml does not exist"),
        (["voc", "--tables", "/nowhere"], "/nowhere/published.csv cannot be read"),
    ],
)
def test_bad_words_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert reproduce.main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_table_is_argparses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["table9"])
    assert ended.value.code == 2 and "invalid choice: 'table9'" in capsys.readouterr().err
