"""`python -m tasks.evaluate`: which results count, what its options refuse, and an interruption."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from esbnn_core.checkpoint.catalogue import read_catalogue
from tasks.classification.datasets import EMBEDDED
from tasks.evaluate import command as evaluate
from tasks.evaluate import dataset_sizes as evaluation_sizes
from tasks.evaluate.command import main
from tests.helpers.catalogue import write
from tests.helpers.evaluation import ROOT, data_root, failed, home, own, right, run, sizes

__all__ = ["data_root", "home", "right", "sizes"]  # fixtures


@pytest.mark.slow
def test_a_part_of_a_set_is_not_the_set(
    home: Path,
    right: float,
    data_root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(evaluation_sizes.SIZES, ("fashion_mnist", "test"), 10_000)
    manifest = write(home / "manifest.json", own(home, value=right + 5))
    words = ["--catalogue", manifest, "--data", data_root, "--json", tmp_path / "r.json"]
    code, out, _ = run("es_tiny", *words, capsys=capsys)
    assert code == 0 and "not compared: 300 images, the published value is of 10,000" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["whole"], result["within"], result["images_published"]) == (False, None, 10_000)
    new = [home / "es_tiny.safetensors", *words, "--dataset", "fashion_mnist", "--print-entry", "es_new"]
    assert "must be measured on all 10,000 images of fashion_mnist, got 300: complete the set in --data" in failed(
        *new, capsys=capsys
    )
    # a set that nobody has counted is taken as it is
    monkeypatch.delitem(evaluation_sizes.SIZES, ("fashion_mnist", "test"))
    assert run("es_tiny", *words, capsys=capsys)[0] == 1


def test_the_sizes_are_those_of_the_sets_at_hand() -> None:
    """The sets that lie here whole, counted on disk."""
    with lzma.open(EMBEDDED / "t10k-labels-idx1-ubyte.xz") as file:
        labels = file.read()
    assert evaluation_sizes.published_images("fashion_mnist_mini", "test") == len(labels) - 8
    assert evaluation_sizes.published_images("Set5", "test") == len(
        [*(ROOT / "tests" / "data" / "sr" / "Set5" / "HR").iterdir()]
    )
    known = {(entry.dataset, entry.split) for entry in read_catalogue() if entry.value is not None}
    assert known <= set(evaluation_sizes.SIZES), known - set(evaluation_sizes.SIZES)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--list", "--limit", "3"], "--limit was given with --list, which takes --catalogue alone"),
        (["es_bnext_tiny", "--tolerance", "5"], "--tolerance was given without --print-entry"),
        (["es_bnext_tiny", "--made-by", "me"], "--made-by was given without --print-entry"),
        (["es_bnext_tiny", "--json", f"{__file__}/r.json"], "takes no file: name another"),
    ],
)
def test_nothing_is_passed_over(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert sentence in err and (out, err.count("\n")) == ("", 1)


def test_options_of_a_file_that_knows_its_network(
    home: Path, data_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [home / "es_tiny.safetensors", "--data", data_root, "--dataset", "fashion_mnist"]
    assert "--config x.yaml was given with a classifier" in failed(*words, "--config", "x.yaml", capsys=capsys)
    assert "image size" in failed(*words, "--image-size", "0", capsys=capsys)
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--back", "packed"])
    assert stop.value.code == 2


def test_an_interruption_is_no_result(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate", stopped)
    assert run("es_bnext_tiny", capsys=capsys) == (130, "", "interrupted\n")
