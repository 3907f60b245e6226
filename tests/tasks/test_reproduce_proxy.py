"""python -m tasks.reproduce --mode proxy: data looked for before anything is trained, failures that lose nothing.

The runs are stand-ins that write what a `fit` writes: test_proxy.py trains.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core import InputError
from tasks.reproduce import command as reproduce
from tasks.reproduce.modes import proxy, proxy_run, results
from tasks.reproduce.modes.proxy_data import describe_missing_proxy_data
from tests.helpers.tables import COST

PLACES = {
    "recu": ["cifar-10-batches-py"],
    "bidet": ["VOCdevkit/VOC2007/ImageSets/Main/train.txt"],
    "bidiffsr": ["sr/train/manga-like", "sr/manga-like"],
}
"""What each system that needs data looks for below --data."""


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cost for every row."""
    monkeypatch.setattr(results, "count_row", lambda row: COST)
    monkeypatch.setattr(proxy, "count_row", lambda row: COST)


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Puts a stand-in in the place of `fit`: 1 epoch's value, or what `failing` says for a run of that folder."""

    def make(failing: dict[str, tuple[int, bytes]] | None = None) -> list[str]:
        started: list[str] = []

        def run(words: list[str], *, log: Any, **options: Any) -> int:
            home = Path(words[words.index("--trainer.default_root_dir") + 1])
            name = f"{home.parent.name}/{home.name}"
            started.append(name)
            code, said = (failing or {}).get(name, (0, b"fine\n"))
            log.write(said)
            if not code:
                (home / "metrics.csv").write_text("epoch,val_top1,train_loss_epoch,val_psnr\n0,12.345,6.5,22.5\n")
            return code

        monkeypatch.setattr(proxy_run, "run_child", run)
        return started

    return make


def place(data: Path, system: str) -> None:
    """The system's data, empty."""
    for name in PLACES[system]:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch() if name.endswith(".txt") else (data / name).mkdir()


@pytest.mark.parametrize("system", sorted(PLACES))
def test_what_a_system_lacks_is_told_until_it_is_there(tmp_path: Path, system: str) -> None:
    data = tmp_path / "data"
    told = proxy.describe_lacking(system, tmp_path / "out", data=str(data))
    assert f"is not at {data / PLACES[system][0]}: " in told and told.endswith(("there", "ubunchu-translation)"))
    place(data, system)
    assert proxy.describe_lacking(system, tmp_path / "out", data=str(data)) == ""
    # every one of its folders counts
    last = data / PLACES[system][-1]
    last.unlink() if last.is_file() else last.rmdir()
    assert f"is not at {last}: " in proxy.describe_lacking(system, tmp_path / "out", data=str(data))


def test_the_repositorys_own_images_are_never_lacking(tmp_path: Path) -> None:
    for system in ("reactnet", "bnext", "binaryvit", "ablation", "spread", "rates", "width"):
        assert proxy.describe_lacking(system, tmp_path, data=str(tmp_path / "nowhere")) == ""
    # whatever the network is, without a root it is not --data that is read
    assert describe_missing_proxy_data("classification", "cifar10", "", (), str(tmp_path / "nowhere")) == ""


def test_a_fresh_clone_trains_what_it_has_and_reports(
    tmp_path: Path, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    started, out, data = fit(), tmp_path / "out", tmp_path / "data"
    words = ["figure1", "--mode", "proxy", "--out", str(out), "--data", str(data), "--seeds", "0"]
    assert reproduce.main(words) == 0
    assert {name.split("/")[0] for name in started} == {"reactnet", "bnext", "binaryvit"}
    printed = capsys.readouterr().out
    told = [line for line in printed.splitlines() if " is not trained: " in line]
    assert [line.split()[0] for line in told] == ["bidet", "bidiffsr"]
    assert f"VOC2007/train is not at {data}/{PLACES['bidet'][0]}: unpack VOCtrainval_06-Nov-2007.tar" in told[0]
    assert printed.index(told[-1]) < printed.index("$ python -m tasks.classification fit")
    report = (out / "report.html").read_text()
    assert "12.35" in report and (out / "figure1.md").exists() and "| bidet" not in (out / "proxies.md").read_text()


def test_one_comparison_of_a_table_is_chosen_by_name(
    tmp_path: Path, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    started, out, data = fit(), tmp_path / "out", tmp_path / "data"
    place(data, "recu")
    words = ["study", "--mode", "proxy", "--out", str(out), "--data", str(data)]
    assert reproduce.main([*words, "--systems", "resnet8_best", "--seeds", "77"]) == 0
    assert started == ["resnet8_best/base-seed77", "resnet8_best/es-seed77"]
    assert reproduce.main([*words, "--systems", "bnext_best", "width", "--seeds", "3"]) == 2
    assert "--systems must be of the tables asked for (start, " in capsys.readouterr().err
    # a variant has to be one of every system that is named
    chosen = ["--systems", "resnet8_best", "rates_resnet8", "--seeds", "5", "--variants"]
    assert reproduce.main([*words, *chosen, "es rate 0.01"]) == 2
    assert "resnet8_best has no variant 'es rate 0.01': its variants are base, es\n" in capsys.readouterr().err
    assert len(started) == 2
    assert reproduce.main([*words, *chosen, "es"]) == 0
    assert sorted(started[2:]) == ["rates_resnet8/es-seed5", "resnet8_best/es-seed5"]
    rows = proxy.read_proxy_results(out / "proxy")
    assert {(row.system, row.variant, *row.seeds) for row in rows} == {
        ("resnet8_best", "base", 77),
        ("resnet8_best", "es", 5, 77),
        ("rates_resnet8", "es", 5),
    }


@pytest.mark.parametrize("present", [False, True])
def test_a_comparison_for_a_gpu_waits_for_one(
    tmp_path: Path, fit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], present: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    started, out, data = fit(), tmp_path / "out", tmp_path / "data"
    place(data, "recu")
    words = ["study", "--mode", "proxy", "--out", str(out), "--data", str(data), "--seeds", "23", "--systems"]
    assert reproduce.main([*words, "groups_long", "resnet8_best"]) == 0
    told = "groups_long is not trained: trainer.accelerator of configs/proxy/train_cifar32_gpu.yaml is gpu, and this "
    assert (told in capsys.readouterr().out) == (not present)
    systems = {name.split("/")[0] for name in started}
    assert systems == {"resnet8_best"} | ({"groups_long"} if present else set())


def test_runs_that_have_ended_are_shown_without_their_data(
    tmp_path: Path, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    started, out, data = fit(), tmp_path / "out", tmp_path / "data"
    place(data, "recu")
    words = ["cifar10", "--mode", "proxy", "--out", str(out), "--data", str(data), "--seeds"]
    assert reproduce.main([*words, "0"]) == 0 and len(started) == 3
    (data / PLACES["recu"][0]).rmdir()
    (out / "proxy" / "recu.json").unlink()  # rows are those of the runs
    capsys.readouterr()
    assert reproduce.main([*words, "0", "1"]) == 0 and len(started) == 3
    assert "recu is not trained: CIFAR-10 is not at " in capsys.readouterr().out
    assert [row.seeds for row in proxy.read_proxy_results(out / "proxy")] == [[0]] * 3
    assert "| recu   | rep" in (out / "proxies.md").read_text()
    # nothing is lacking where nothing is left to train
    assert reproduce.main([*words, "0"]) == 0 and "is not trained" not in capsys.readouterr().out


def test_a_failed_run_loses_nothing_that_went_before(
    tmp_path: Path, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said = b"error: an old one\nerror: the learning rate is no number: correct it\nEpoch 0\n"
    started, out = fit({"bnext/es-seed0": (2, said)}), tmp_path / "out"
    words = ["figure1", "--mode", "proxy", "--out", str(out), "--data", str(tmp_path), "--seeds", "0"]
    assert reproduce.main(words) == 2
    assert started[-1] == "bnext/es-seed0"
    error = capsys.readouterr().err
    assert error.startswith("error: python -m tasks.classification fit") and error.count("\n") == 1
    log = out / "proxy" / "bnext" / "es-seed0" / "log.txt"
    assert f"exit code 2, its log {log} says: error: the learning rate is no number: correct it\n" in error
    rows = [(row.system, row.variant) for row in proxy.read_proxy_results(out / "proxy")]
    assert rows == [*(("reactnet", name) for name in ("base", "es", "es spread 0.5", "rep")), ("bnext", "base")]
    assert "bnext" in (out / "proxies.md").read_text() and "12.35" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"Traceback\nerror: first\nmore\nerror: why\nbye\n", "error: why"),
        (b"Traceback (most recent call last):\n  x\nValueError: no\n\n", "ValueError: no"),
        (b"", "nothing"),
    ],
)
def test_the_sentence_of_a_failed_run_is_its_own_of_this_attempt(
    tmp_path: Path, fit: Any, said: bytes, told: str
) -> None:
    fit({"reactnet/base-seed0": (1, said)})
    for attempt in range(2):
        with pytest.raises(InputError) as raised:
            proxy.run_proxy("reactnet", tmp_path, data="none", seeds=[0], only=["base"])
        assert str(raised.value).endswith(f"log.txt says: {told}")
        if attempt == 0:
            # the next one goes on: its log is added to this one
            home = tmp_path / "reactnet" / "base-seed0"
            (home / "checkpoints").mkdir()
            (home / proxy_run.LAST).touch()
            (home / "log.txt").write_bytes(b"error: of the attempt before\n")


def test_a_damaged_run_is_told_before_anything_is_trained(
    tmp_path: Path, fit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    started, home = fit(), tmp_path / "proxy" / "binaryvit" / "es-seed0"
    home.mkdir(parents=True)
    (home / "run.json").write_text(json.dumps({"command": "x"}))
    assert reproduce.main(["figure1", "--mode", "proxy", "--out", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert started == [] and "run.json cannot be read" in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()
