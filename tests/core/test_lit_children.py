"""A command's child processes: they end with it, or keep their folder locked past it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esbnn_core.files import one_at_a_time
from esbnn_core.lit.children import passes_sigterm_on, run_child
from tests.helpers import processes

ROOT = Path(__file__).parents[2]
CHILD = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
HEAD = """
import pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from esbnn_core.lit.children import passes_sigterm_on, run_child
from esbnn_core.files import one_at_a_time
out, child = pathlib.Path(sys.argv[1]), sys.argv[2]
"""
ONE = """
with passes_sigterm_on():
    run_child(["-c", child, str(out / "pid0")])
"""
POOL = """
with passes_sigterm_on(), ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda i: run_child(["-c", child, str(out / f"pid{i}")]), range(3)))
"""
LOCKED = """
with one_at_a_time(out) as turn:
    run_child(["-c", child, str(out / "pid0")], turn=turn)
"""


def wait(for_it: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not for_it():
        assert time.monotonic() < end
        time.sleep(0.01)


def lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[-1].split()[0] != "Z"


def begin(tmp_path: Path, code: str, children: int) -> tuple[processes.Child, list[int]]:
    """A command and the numbers of its children, all of which run."""
    words = [sys.executable, "-c", HEAD + code, str(tmp_path), CHILD]
    command = processes.Child(words, tmp_path / "out", tmp_path / "err", env={**os.environ, "PYTHONPATH": str(ROOT)})
    files = [tmp_path / f"pid{i}" for i in range(children)]
    wait(lambda: all(file.exists() and file.read_text() for file in files))
    return command, [int(file.read_text()) for file in files]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(("code", "children"), [(ONE, 1), (POOL, 2)], ids=["one", "pool"])
def test_sigterm_ends_the_children_and_starts_no_other(tmp_path: Path, code: str, children: int) -> None:
    command, numbers = begin(tmp_path, code, children)
    command.process.terminate()
    assert command.wait(60) == 143
    assert not any(map(lives, numbers))
    assert not (tmp_path / "pid2").exists()


def test_what_a_thread_starts_after_sigterm_ends_at_once() -> None:
    with passes_sigterm_on():
        with pytest.raises(SystemExit) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.code == 143
        assert run_child(["-c", "import time; time.sleep(60)"]) == -signal.SIGTERM
    assert run_child(["-c", ""]) == 0


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_child_keeps_its_folder_locked_where_its_command_is_killed(tmp_path: Path) -> None:
    command, (number,) = begin(tmp_path, LOCKED, 1)
    command.kill()
    command.wait()
    with one_at_a_time(tmp_path, patience=0) as turn:
        assert not turn and lives(number)
    os.kill(number, signal.SIGKILL)
    wait(lambda: not lives(number))
    with one_at_a_time(tmp_path, patience=0) as turn:
        assert turn


def test_a_child_gives_its_exit_code_and_its_words(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with passes_sigterm_on(), (tmp_path / "log").open("wb") as log:
        assert run_child(["-c", "import sys; print('out'); sys.exit('err')"], log=log, cwd=tmp_path) == 1
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]
    assert run_child(["-c", "import os; os.kill(os.getpid(), 9)"]) == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) is before
