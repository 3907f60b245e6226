"""The demo: a run in small, and its exit code when something does not agree."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks.classification import demo
from tasks.classification.data import ClassificationDataModule
from tasks.classification.demo_report import render_report, render_summary
from tests.helpers import processes


@pytest.fixture
def rows() -> list[demo.Row]:
    """Two made-up rows for the checks that follow the run; the run itself has its own test."""
    base = demo.Row(
        system="base",
        network="reactnet_resnet8",
        options={},
        start={},
        command="python",
        top1_latent=80.0,
        top1_packed=80.0,
        differing=0,
        bops=6400,
        flops=100,
        ops=200.0,
        params=10,
        bytes_latent=40,
        bytes_packed=8,
        ms_latent=1.0,
        ms_packed=2.0,
        train_seconds=3.0,
        val_top1=[70.0, 80.0],
    )
    return [base, replace(base, system="ES tau=2", start={"thresholds": 0.5, "gains": "alternate"})]


@pytest.mark.slow
def test_demo_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run_child", processes.run_child)
    monkeypatch.setattr(demo, "ClassificationDataModule", partial(ClassificationDataModule, test_size=100))
    small = ["--trainer.max_epochs=1", "--data.train_size=256", "--data.val_size=100"]
    assert demo.main(["--out", "out", "--", *small]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    base, es = report["rows"]
    assert (base["bops"], base["flops"]) == (es["bops"], es["flops"])
    assert base["bops"] == 36126720 and base["flops"] == 1029888  # by hand, layer by layer
    for row in report["rows"]:
        assert row["differing"] == 0 and row["top1_latent"] == row["top1_packed"]
        assert row["bytes_packed"] < row["bytes_latent"] / 4
    assert (tmp_path / "out" / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "out" / "summary.md").read_text() in capfd.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        text.count("fit --config") == 2
        and "ES tau=2 starts its copies apart (thresholds 0.5, over copies, gains alternate; ours" in text
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"differing": 3}, "ES tau=2: 3 packed predictions differ"),
        ({"flops": 101}, "the OPs of the two networks differ"),
    ],
)
def test_a_disagreement_gives_exit_code_1(
    tmp_path: Path,
    rows: list[demo.Row],
    change: dict[str, Any],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = iter([rows[0], replace(rows[1], **change)])
    monkeypatch.setattr(demo, "run_system", lambda *_: next(wrong))
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert f"error: {fault}" in capsys.readouterr().err


def test_table_has_a_line_a_network(rows: list[demo.Row]) -> None:
    for text in (render_report(rows), render_summary(rows)):
        head, rule, *body = text.splitlines()[:4]
        assert head.split("|")[1].strip() == "network" and set(rule) == {"|", "-"}
        assert [line.split("|")[1].strip() for line in body] == ["base", "ES tau=2"]
        assert len({len(line) for line in (head, rule, *body)}) == 1


def test_the_summary_counts_disagreements(rows: list[demo.Row]) -> None:
    assert "disagree on no test image." in render_summary(rows)
    assert "disagree on 3 test images." in render_summary([rows[0], replace(rows[1], differing=3)])
