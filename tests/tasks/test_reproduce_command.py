"""python -m tasks.reproduce as typed: where it writes, what it does not take, how it is stopped."""

from pathlib import Path
from typing import Any

import pytest

from esbnn_core.errors import check_output_folder
from tasks.reproduce import command as reproduce
from tasks.reproduce.modes import proxy, results, stages, training
from tasks.reproduce.modes.results import Measurement
from tasks.reproduce.report.text import render_markdown
from tests.helpers.tables import COST, outcome


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cost for every row."""
    monkeypatch.setattr(results, "count_row", lambda row: COST)


@pytest.mark.parametrize("mode", reproduce.MODES)
def test_an_out_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    def work(*given: Any, **options: Any) -> Any:
        pytest.fail("it worked")

    for room, name in (
        *((reproduce, "evaluate_tables"), (reproduce, "train_rows"), (reproduce, "read_evaluated")),
        *((proxy, "run_proxy"), (proxy, "gather_proxy")),
    ):
        monkeypatch.setattr(room, name, work)
    file = tmp_path / "README.md"
    file.write_text("text")
    for out, told in (
        (file, f"--out must be a folder, got the file {file}: name another"),
        (file / "x", f"--out {file / 'x'} cannot be written to (Not a directory): name another folder"),
        (Path("/proc"), "--out /proc cannot be written to ("),  # a folder in which nobody makes a file
    ):
        assert reproduce.main(["cifar10", "--mode", mode, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {told}") and error.count("\n") == 1
    assert file.read_text() == "text" and list(tmp_path.iterdir()) == [file]


def test_a_dry_run_does_not_look_at_out(tmp_path: Path) -> None:
    words = ["cifar10", "--mode", "train", "--out", str(tmp_path / "out")]
    assert reproduce.main([*words, "--dry-run"]) == 0 and not (tmp_path / "out").exists()


def test_trying_the_folder_leaves_nothing(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b", "--out")
    assert list(tmp_path.iterdir()) == []


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["cifar10", "--mo", "train", "--dry-run"])
    assert ended.value.code == 2 and "unrecognized arguments: --mo" in capsys.readouterr().err


def test_stopped_by_hand_is_one_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "evaluate_tables", stopped)
    assert reproduce.main(["cifar10", "--mode", "eval", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("table", "row", "here", "told"),
    [
        ("cifar10", "recu_resnet20", 0, "1 GPU a machine and torch sees 0: give --trainer configs/trainer/cpu.yaml,"),
        (
            *("imagenet", "bnext_small", 1),
            "8 GPUs a machine and torch sees 1: give --trainer configs/trainer/gpu1.yaml or configs/trainer/cpu.yaml,",
        ),
    ],
)
def test_a_machine_with_fewer_gpus_is_told_what_it_can_take(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: str,
    row: str,
    here: int,
    told: str,
) -> None:
    monkeypatch.setattr(training.torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(stages, "_describe_other_run", lambda root, run, identity: "")
    monkeypatch.setattr(stages, "_is_finished", lambda root, run: False)
    monkeypatch.setattr(training, "run_child", lambda *words, **options: pytest.fail("it ran"))
    assert reproduce.main([table, "--mode", "train", "--rows", row, "--out", str(tmp_path)]) == 2
    assert f"is written for {told} which keeps the global batch\n" in capsys.readouterr().err


def test_systems_are_told_apart_though_names_have_commas() -> None:
    rows = ("latent_resnet18", "latent_resnet34")
    lacks = Measurement(missing=("no images",))
    text = render_markdown(outcome("imagenet", {(row, "ImageNet-1k", "top1"): lacks for row in rows}))
    assert "- not measured (latent weights, ResNet-18; latent weights, ResNet-34): no images" in text
