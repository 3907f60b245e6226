"""The stages of make gpu-check: limits, endings and resuming of the runner, and a rehearsal of each on the CPU."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from benchmarks.command import run_command
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import cifar10, operators, runner, sums, task
from benchmarks.gpu_check.cifar10_recipe import NETWORKS, Draws, Loop, Recipe
from benchmarks.gpu_check.runner import Stage, run_stages
from benchmarks.gpu_check.task import OutOfTime, Skipped, Task, run_stage
from benchmarks.speed import gpu, graphs
from esbnn_core.errors import InputError
from esbnn_core.lit.callbacks import ReCUSchedule
from esbnn_core.lit.schedules import ProgressLR

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
        stage("deaf", deaf, 2.0),
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
    assert found["deaf"]["line"] == "killed at its limit of 2 s; last line: half way"
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


def make_task(out: Path, name: str = "sums", seconds: float = 1000.0) -> Task:
    return Task(name, out, time.monotonic() + seconds, rehearse=True)


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


def test_the_numbers_are_the_recipes() -> None:
    recipe = Recipe()
    found = yaml.safe_load((ROOT / "configs/classification/recu_r20_cifar10.yaml").read_text())
    model, data = found["model"], found["data"]
    rates = model["lr_scheduler"]["init_args"]
    given = {"lr": recipe.rate, "momentum": recipe.momentum, "weight_decay": recipe.decay}
    assert model["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": given}
    assert (found["trainer"]["max_epochs"], data["batch_size"]) == (recipe.epochs, recipe.batch)
    assert data["augmentation"] == {"mean": list(recipe.mean), "std": list(recipe.std)}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.rate)
    schedule, tau = ProgressLR(optimizer, **rates), ReCUSchedule(*recipe.tau)
    schedule.bind(recipe.epochs)
    for epoch in range(recipe.epochs):
        assert recipe.rate_of(epoch) == pytest.approx(recipe.rate * schedule.factor(epoch), rel=1e-9, abs=1e-15)
        assert recipe.tau_of(epoch) == pytest.approx(tau.tau(epoch, recipe.epochs), rel=1e-12)
    for name, options in NETWORKS.items():
        path = ROOT / f"configs/classification/{name.replace('resnet20', 'r20')}_cifar10.yaml"
        own = yaml.safe_load(path.read_text())["model"]
        assert (own["network"], own.get("network_options", {})) == (name, options)


def test_crops_and_mirrors_are_those_of_the_draws() -> None:
    """Every pixel of a batch is looked up by its own place."""
    recipe = Recipe(batch=3, pad=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = cifar10.random_images(7)
    loop, draws = Loop("recu_resnet20", recipe, images), Draws(7, recipe, 0, 5)
    loop.begin_epoch(5)
    loop.place.add_(3)
    got, labels = loop.batch()
    assert torch.equal(labels, images.labels[draws.order[3:]])
    padded = torch.zeros(7, 3, 36, 36)
    padded[:, :, 2:34, 2:34] = images.pixels / 255
    seen = set()
    for b, i in enumerate(range(3, 6)):
        top, left, mirrored = int(draws.corner[0, i]), int(draws.corner[1, i]), bool(draws.mirrored[i])
        seen.add(mirrored)
        for y, x in ((0, 0), (0, 31), (31, 5), (17, 30)):
            across = left + (31 - x if mirrored else x)
            assert torch.equal(got[b, :, y, x], padded[draws.order[i], :, top + y, across])
    assert seen == {False, True} and len(set(draws.order.tolist())) == 6
    assert not torch.equal(draws.order, Draws(7, recipe, 0, 6).order)


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=2, warm=1)
    images = {"train": cifar10.random_images(5), "test": cifar10.random_images(4)}
    whole, halves = make_task(tmp_path / "whole", "cifar10"), make_task(tmp_path / "halves", "cifar10")
    cifar10.train(whole, "recu_resnet20", recipe, images, {})

    def stop(loop: Loop, split: Any) -> float:
        halves.end = 0.0
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        # a test after the first epoch, during which the time runs out
        patch.setattr(cifar10, "EVERY", 1)
        patch.setattr(Loop, "top1", stop)
        with pytest.raises(OutOfTime, match="epoch 1 of 2; --resume goes on from there"):
            cifar10.train(halves, "recu_resnet20", recipe, images, {})
    halves.end = whole.end
    saved = cifar10.read_saved(halves, recipe)
    assert saved["recu_resnet20"]["epoch"] == 1 and len(saved["recu_resnet20"]["log"]) == 1
    cifar10.train(halves, "recu_resnet20", recipe, images, saved)
    ends = [torch.load(done.out / "cifar10.pt", weights_only=True)["recu_resnet20"] for done in (whole, halves)]
    for kind in ("network", "optimizer"):
        one, other = (end["state"][kind] for end in ends)
        flat = [(a, b) for a, b in zip(tensors(one), tensors(other), strict=True)]
        assert len(flat) > 40 and all(torch.equal(a, b) for a, b in flat)
    (tmp_path / "halves" / "cifar10.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="must be a checkpoint of this stage, got something else"):
        cifar10.read_saved(halves, recipe)


def test_a_capture_leaves_the_training_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that warm a graph up are taken back: with a stand-in for torch.cuda whose capture runs the step too."""
    loop = Loop("recu_resnet20", Recipe(batch=2), cifar10.random_images(5))
    loop.begin_epoch(0)
    loop.ready()
    loop.step()
    loop.step()  # the epoch's end
    before = [tensor.detach().clone() for tensor in loop.tensors()]
    waiting = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "Stream": lambda: waiting,
        "current_stream": lambda: waiting,
        "stream": lambda _: contextlib.nullcontext(),
        "graph": lambda _: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=loop.step),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    steps = []
    own = loop.step
    monkeypatch.setattr(loop, "step", lambda: steps.append(1) or own())
    monkeypatch.setattr(loop, "device", SimpleNamespace(type="cuda"))
    replay = loop.capture()
    assert loop.place.tolist() == [4, 5]
    assert len(steps) == 4 and len(before) > 150
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(loop.tensors(), before, strict=True))
    loop.begin_epoch(1)
    replay()
    assert not torch.equal(loop.loss, before[-2]) and loop.place.tolist() == [2, 3]


def tensors(state: Any) -> list[torch.Tensor]:
    """All tensors of a nested state, in its order."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.slow
def test_the_blocks_are_compiled_after_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(gpu, "compiled", lambda case: lambda i: case.real(case.x[i], case.x[i]))
    plan = gpu.Plan(1, 3, "cpu", blocks=((3, 32),), alone=((3, 32, 1),), small=(1, 2), copied=1 << 12)
    record = gpu.run(plan, 600.0, lambda rows: seen.append(tuple(len(rows[key]) for key in ("G1", "G2", "G3"))))
    assert seen == [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 2), (1, 1, 2), (1, 1, 2)]
    assert all("torch.compile bf16" in row["us"] for row in record["G1"] + record["G3"])
    assert "torch.compile bf16" not in gpu.run(plan, 0.0)["G1"][0]["us"]
    # a row that cannot be made is left out, and neither ends the others nor is compiled
    own = gpu.block
    monkeypatch.setattr(
        gpu, "block", lambda side, channels, batch, *rest, **more: own(side, channels, 1 // (2 - batch), *rest, **more)
    )
    failed: list[str] = []

    def attempt(label: str, work: Callable[[], None]) -> None:
        try:
            work()
        except ZeroDivisionError:
            failed.append(label)

    record = gpu.run(plan, 600.0, attempt=attempt)
    assert failed == ["G3 (3, 32, 2)"] and [len(record[key]) for key in ("G1", "G2", "G3")] == [1, 1, 1]


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
        "training": lambda: found["kept"] + found["steps"],
        "cifar10": lambda: found["epochs"] + found["graph against plain loop"] + [*found["training"].values()],
    }[name]()
    assert len([*rows]) >= 2 and all(rows)


@pytest.mark.slow
def test_the_command_rehearses_in_processes_of_its_own(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        "--rehearse",
        "--stages",
        "suite",
        "--out",
        str(tmp_path / "o"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o" / "suite.json").read_text())
    assert found["tests"]["failed"] == 0 and sum(found["tests"].values()) >= 15
    assert index(tmp_path / "o")["stages"]["suite"]["status"] == "done"


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
