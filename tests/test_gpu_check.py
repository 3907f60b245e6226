"""The stages of make gpu-check: limits, endings and resuming of the runner, and a rehearsal of each on the CPU."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.command import run_command
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import operators, runner, sums, task
from benchmarks.gpu_check.runner import Stage, run_stages
from benchmarks.gpu_check.task import OutOfTime, Skipped, Task, run_stage
from benchmarks.speed import graphs
from esbnn_core.errors import InputError
from tests.helpers.gpu_check import make_task

ROOT = Path(__file__).parents[1]
SETTINGS = {"rehearsal": True}
HEAD = "import json, os, pathlib, signal, subprocess, sys, time; out = pathlib.Path(sys.argv[2]); "
"""Start of a stage of the runner's tests: --out OUT --end TIME follow."""


def stage(name: str, code: str, limit: float = 60.0) -> Stage:
    return Stage(name, "a question?", limit, (sys.executable, "-S", "-c", HEAD + code))


def index(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "index.json").read_text())
    return found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LEAST", 0.05)
    monkeypatch.setattr(runner, "GRACE", 0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_a_stage_past_its_limit_is_killed_and_the_rest_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    # deaf to SIGTERM, with a child of its own that counts
    count = "import time, pathlib; f = open(r'{}', 'ab', 0)\nwhile True: f.write(b'.'); time.sleep(0.02)"
    ticks = tmp_path / "ticks"
    deaf = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); (out / 'deaf.json').write_text('{\"rows\": [1]}'); "
        f"subprocess.Popen([sys.executable, '-S', '-c', {count.format(ticks)!r}]); print('half way', flush=True); "
        "time.sleep(600)"
    )
    stages = [
        stage("deaf", deaf, 1.0),
        stage("broken", "print('before'); raise ValueError('in the middle')"),
        stage("crashed", "os.kill(os.getpid(), signal.SIGSEGV)"),
        stage("late", "print('epoch 3 of 600'); sys.exit(75)"),
        stage("absent", "print('no tool here'); sys.exit(77)"),
        stage("fine", "(out / 'fine.json').write_text('{}'); print('two rows')"),
    ]
    assert run_stages(stages, out, 60, SETTINGS, resume=False) == 2
    found = index(out)["stages"]
    assert {name: entry["status"] for name, entry in found.items()} == {
        "deaf": "timed out",
        "broken": "failed",
        "crashed": "failed",
        "late": "timed out",
        "absent": "skipped",
        "fine": "done",
    }
    assert found["deaf"]["line"] == "killed at its limit of 1 s; last line: half way"
    assert json.loads((out / "deaf.json").read_text()) == {"rows": [1]} and found["deaf"]["seconds"] < 30
    assert found["broken"]["line"] == "ValueError: in the middle" and "SIGSEGV" in found["crashed"]["line"]
    assert found["fine"]["files"] == ["fine.json", "fine.log"] and found["broken"]["files"] == ["broken.log"]
    assert "fine: done" in capsys.readouterr().out
    size = ticks.stat().st_size
    time.sleep(0.3)
    assert ticks.stat().st_size == size > 0


@pytest.mark.usefixtures("hasty")
def test_resume_runs_what_is_not_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    once = "(out / 'NAME.json').write_text('{}'); f = open(out / 'runs', 'a'); f.write('NAME '); f.close(); "
    good, bad = (stage(name, once.replace("NAME", name) + after) for name, after in (("good", ""), ("bad", "1 / 0")))
    assert run_stages([good, bad], out, 60, SETTINGS, resume=False) == 1
    with pytest.raises(InputError, match="got those of an earlier run: give --resume or another --out"):
        run_stages([good, bad], out, 60, SETTINGS, resume=False)
    assert run_stages([bad, good], out, 60, SETTINGS, resume=True) == 1
    assert (out / "runs").read_text() == "good bad bad "
    assert index(out)["stages"]["good"]["status"] == "done"
    with pytest.raises(InputError, match=r"must be of a run on a GPU, got that of a rehearsal: name another --out"):
        run_stages([good], out, 60, {"rehearsal": False}, resume=True)
    # with no time nothing starts, and the index says so
    assert run_stages([stage("last", "raise SystemExit(1)")], out, 0.01, SETTINGS, resume=True) == 0
    assert index(out)["stages"]["last"] == {"status": "skipped", "line": "no time was left"}
    (out / "index.json").write_text("[]")
    with pytest.raises(InputError, match="must be the index of an earlier run"):
        run_stages([good], out, 60, SETTINGS, resume=True)


def test_a_stage_that_is_not_done_leaves_no_old_results(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"old": 1}')
    status, line = runner.run_child(stage("one", "raise SystemExit('refused')"), tmp_path, 30)
    assert (status, line) == ("failed", "refused") and not (tmp_path / "one.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (OutOfTime("3 of 5 rows"), task.OUT_OF_TIME, "3 of 5 rows"),
        (Skipped("no tool"), task.SKIPPED, "no tool"),
        (ValueError("first\nlast"), 1, "ValueError: last"),
        (None, 0, "all rows"),
    ],
)
def test_what_was_kept_outlasts_the_ending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception | None, code: int, last: str
) -> None:
    def work(given: Task) -> None:
        given.row("rows", {"a": 1})
        if error is not None:
            raise error
        print("all rows")

    assert run_stage(make_task(tmp_path), work) == code
    found = json.loads((tmp_path / "sums.json").read_text())
    assert found["rows"] == [{"a": 1}] and found["rehearsal"] is True and found["machine"]["torch"] == torch.__version__
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_a_fault_fails_its_stage_and_the_next_part_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def part() -> None:
        raise RuntimeError("out of registers")

    def work(given: Task) -> None:
        assert not given.attempt("first", part)
        assert given.attempt("second", lambda: given.row("rows", {"a": 1}))

    assert run_stage(make_task(tmp_path), work) == 1
    found = json.loads((tmp_path / "sums.json").read_text())
    assert found["faults"] == ["first: RuntimeError: out of registers"] and len(found["rows"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "first: RuntimeError: out of registers (faults: 1)"


def test_differences_are_found_and_placed(tmp_path: Path) -> None:
    given = make_task(tmp_path, "operators")
    comparison, want = operators.Comparison(given), torch.arange(24).view(2, 3, 4)
    got = want.clone()
    comparison.add("kind", "same", got, want)
    got[1, 0, 2] = got[1, 2, 3] = 99
    comparison.add("kind", "other", got, want)
    comparison.add("kind", "type", want.int(), want)
    assert comparison.counts == {"kind": {"compared": 3, "equal": 1}}
    first, second = given.record["differences"]
    assert (first["differing"], first["of"], first["first"], first["got"], first["want"]) == (2, 24, (1, 0, 2), 99, 14)
    assert "int32" in second["got"] and len(given.faults) == 2
    row = {"layer": "L", "latent": {"TF32": sums.compare(want.float() + 2, want), "fp32": sums.compare(want, want)}}
    sums.report(given, row)
    assert given.faults[2:] == ["sums of L with TF32 are off by up to 2.0"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--stages operators sum", "--stages must be one of operators, sums"),
        ("--seconds 0", "--seconds must be a number above 0, got 0.0"),
        ("--seconds nan", "--seconds must be a number above 0, got nan"),
        ("--seconds soon", "argument --seconds: invalid float value: 'soon'"),
        ("--rehearse --out README.md", "--out must be a folder, got the file README.md"),
        ("", "make gpu-check needs a GPU, torch sees none here"),
    ],
)
def test_broken_options_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("README.md").write_text("a file")
    monkeypatch.setattr(sys, "argv", ["gpu_check", *words.split()])
    with pytest.raises(SystemExit) as caught:
        run_command(command.main)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert caught.value.code == 2 and len(lines) == 1 and says in lines[0], lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_the_stages_have_their_order_whatever_is_asked_for() -> None:
    made = command.make_stages(["cifar10", "sanitizer", "operators"], "data", rehearse=False)
    assert [one.name for one in made] == ["operators", "cifar10", "sanitizer"]
    assert "--rehearse" not in made[0].words
    page = (ROOT / "docs/reports/gpu.md").read_text()
    limits = {name: f"{limit:.0f} s" for name, (_, limit) in {**command.QUESTIONS, **command.ON_REQUEST}.items()}
    limits["cifar10"] = "what is left"
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", page, re.M)
    assert dict(rows) == limits and [name for name, _ in rows] == [*limits]
    # a whole check has time for the epochs
    assert sum(limit for name, (_, limit) in command.QUESTIONS.items() if name != "cifar10") <= 500


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in command.QUESTIONS if name != "suite"])
def test_every_stage_can_be_rehearsed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = __import__(f"benchmarks.gpu_check.{name}", fromlist=["run"])
    code = run_stage(make_task(tmp_path, name), module.run)
    text = capsys.readouterr().out
    if code == task.SKIPPED:
        pytest.skip(text.splitlines()[-1])
    assert code == 0, text
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["rehearsal"] is True and found["faults"] == []
    rows = {
        "operators": lambda: found["comparisons"].values(),
        "sums": lambda: found["rows"],
        "blocks": lambda: found["G1"] + found["G2"] + found["G3"],
        "networks": lambda: found["agreement"] + found["times"],
        "training": lambda: (
            found["kept"] + found["steps"] + found["correctness"] + found["captured"] + found["step_times"]["rows"]
        ),
        "cifar10": lambda: found["epochs"] + found["graph against plain loop"] + [*found["training"].values()],
    }[name]()
    assert len([*rows]) >= 2 and all(rows)


@pytest.mark.slow
def test_the_command_rehearses_in_a_process_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the command takes it away
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process goes on
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--rehearse", "--stages", "suite", "--out", str(out)])
    with pytest.raises(SystemExit) as caught:
        run_command(command.main)
    assert caught.value.code == 0 and os.environ["CUDA_VISIBLE_DEVICES"] == ""
    found = json.loads((out / "suite.json").read_text())
    assert found["tests"]["failed"] == 0 and sum(found["tests"].values()) >= 15
    assert index(out)["stages"]["suite"]["status"] == "done"


@pytest.mark.parametrize(
    ("work", "refused"),
    [
        (lambda x: x * torch.tensor(2.0), "lift_fresh"),
        (lambda x: x * x.sum().item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "copies from the host"),
        (lambda x: torch.where(x > 0, 1.0, -1.0) + 2, ""),
    ],
)
def test_a_rehearsed_capture_refuses_what_a_capture_would(work: Callable[[torch.Tensor], object], refused: str) -> None:
    x = torch.randn(3)
    if not refused:
        graphs.captured(lambda _: work(x), 2, "cpu")()
        return
    with pytest.raises(RuntimeError, match=refused):
        graphs.captured(lambda _: work(x), 2, "cpu")
