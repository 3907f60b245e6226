"""Runs stages one after the other, each in a process of its own with a limit, and keeps an index of how they ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.task import OUT_OF_TIME, SKIPPED
from esbnn_core.errors import InputError
from esbnn_core.files import child_environment, write_atomically

INDEX = "index.json"
LEAST = 5.0
"""Seconds that a stage needs at least: with less left it is skipped."""
GRACE = 3.0
"""Seconds between asking a stage past its limit to end and killing it."""
ENDINGS = {0: "done", OUT_OF_TIME: "timed out", SKIPPED: "skipped"}


@dataclass(frozen=True)
class Stage:
    """One question.

    Attributes:
        name: of the stage and its files.
        answers: the question.
        limit: seconds after which it is killed.
        words: its command; the runner adds --out and --end.
    """

    name: str
    answers: str
    limit: float
    words: tuple[str, ...]


class Index:
    """The file that says of each stage how it ended; written whole after every change.

    Args:
        out: folder of all files.
        settings: of the run, for whoever reads the file.
        known: what an earlier run's index says of its stages, by name.
    """

    def __init__(self, out: Path, settings: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
        self.out, self.settings, self.stages = out, settings, dict(known)

    def note(self, name: str, **values: Any) -> None:
        """Set what is known of a stage, and write the file."""
        self.stages[name] = values
        text = json.dumps({**self.settings, "stages": self.stages}, indent=1)
        write_atomically(self.out / INDEX, f"{text}\n".encode())


def read_index(out: Path, rehearsal: bool) -> dict[str, dict[str, Any]]:
    """What an earlier run's index in `out` says of its stages, {} without one.

    Raises:
        InputError: a damaged index, or a rehearsal's where the run is none, and the other way round.
    """
    path = out / INDEX
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        stages, rehearsed = dict(found["stages"]), bool(found["rehearsal"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must be the index of an earlier run, got something else: name another --out"
        ) from error
    if rehearsed != rehearsal:
        kinds = ("a run on a GPU", "a rehearsal")
        raise InputError(f"{path} must be of {kinds[rehearsal]}, got that of {kinds[rehearsed]}: name another --out")
    return stages


def run_stages(stages: Sequence[Stage], out: Path, seconds: float, settings: dict[str, Any], resume: bool) -> int:
    """Run all stages within `seconds`; returns the number that failed.

    A stage gets its limit, or what is left of the whole. Whatever it does, the next one runs.

    Args:
        stages: in their order.
        out: folder of the index, of each stage's NAME.json and NAME.log.
        seconds: of all together.
        settings: of the run, for the index; has "rehearsal".
        resume: skip the stages that an earlier run has done.

    Raises:
        InputError: `out` has an earlier run and resume is not asked for, or one that cannot be continued.
    """
    end = time.monotonic() + seconds
    known = read_index(out, bool(settings["rehearsal"]))
    if known and not resume:
        raise InputError(f"{out} must be without results, got those of an earlier run: give --resume or another --out")
    out.mkdir(parents=True, exist_ok=True)
    index, failed = Index(out, settings, known), 0
    for stage in stages:
        before = known.get(stage.name, {}).get("status")
        if before == "done":
            print(f"{stage.name}: done by an earlier run", flush=True)
            continue
        limit = min(stage.limit, end - time.monotonic())
        if limit < LEAST:
            index.note(stage.name, status="skipped", line="no time was left")
        else:
            index.note(stage.name, status="running", answers=stage.answers, limit=round(limit, 1))
            began = time.monotonic()
            status, line = run_child(stage, out, limit)
            taken = round(time.monotonic() - began, 1)
            files = [f"{stage.name}.{kind}" for kind in ("json", "log") if (out / f"{stage.name}.{kind}").exists()]
            values = {"answers": stage.answers, "seconds": taken, "limit": round(limit, 1), "files": files}
            index.note(stage.name, status=status, line=line, **values)
        ended = index.stages[stage.name]
        failed += ended["status"] == "failed"
        print(f"{stage.name}: {ended['status']} ({ended.get('seconds', 0)} s): {ended['line']}", flush=True)
    return failed


def run_child(stage: Stage, out: Path, limit: float) -> tuple[str, str]:
    """Run one stage; returns its status and the line that says why. What it started ends with it."""
    log = out / f"{stage.name}.log"
    (out / f"{stage.name}.json").unlink(missing_ok=True)  # what is read afterwards is of this run
    # the clock is one for all processes: what a child needs to start is not added to its time
    words = [*stage.words, "--out", str(out), "--end", f"{time.monotonic() + limit:.1f}"]
    with log.open("wb") as stream:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment(), start_new_session=True
        )
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            end_group(child, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
        finally:
            # also where this process is interrupted, and for what the child left behind
            end_group(child, signal.SIGKILL)
            child.wait()
    line = last_of(log)
    if code is None:
        return "timed out", f"killed at its limit of {limit:.0f} s; last line: {line}"
    if code < 0:
        return "failed", f"ended by {signal.Signals(-code).name}; last line: {line}"
    return ENDINGS.get(code, "failed"), line


def end_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the child's process group, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def last_of(log: Path) -> str:
    """The last line of a log that is not empty, as far as it is short enough to read."""
    lines = [line.strip() for line in log.read_bytes()[-4000:].decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:400] if lines else "no output"


def environment() -> dict[str, str]:
    """Of a stage: this copy of the repository, and output that is not held back."""
    return {**child_environment(), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def stage_words(name: str, data: str, rehearse: bool) -> tuple[str, ...]:
    """The command of one of this package's stages."""
    flag = ("--rehearse",) if rehearse else ()
    return (sys.executable, "-m", "benchmarks.gpu_check.task", name, "--data", data, *flag)
