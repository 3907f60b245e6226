"""Files written whole, by processes that are killed too, through links, into devices, onto folders; one at a time."""

import errno
import fcntl
import os
import random
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esbnn_core import files
from esbnn_core.files import write_atomically

SIZE = 400_000


def kill_in_the_middle(write: Callable[[int], None], target: Path, seed: int) -> None:
    """Write 0, 1, 2, ... in another process until it is killed, after its first write however loaded the machine is."""
    before = target.stat().st_ino
    child = os.fork()
    if not child:
        try:
            for number in range(10**9):
                write(number)
        finally:
            os._exit(1)
    while target.stat().st_ino == before:
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="files without a name are of Linux")
def test_a_killed_writer_leaves_the_old_or_the_new_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    write_atomically(target, bytes(SIZE))
    for seed in range(8):
        kill_in_the_middle(lambda number: write_atomically(target, bytes([number % 256]) * SIZE), target, seed)
        data = target.read_bytes()
        assert len(data) == SIZE and data == data[:1] * SIZE
    # a file has a name for the moment between its last byte and the rename: the only one that may be left, whole
    for left in set(tmp_path.iterdir()) - {target}:
        assert left.name.startswith(".file.bin.") and left.stat().st_size == SIZE
        left.unlink()
    write_atomically(target, b"last")
    assert target.read_bytes() == b"last" and list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path: Path) -> None:
    target, children = tmp_path / "file.bin", []
    for value in (1, 2):
        child = os.fork()
        if not child:
            try:
                for _ in range(300):
                    write_atomically(target, bytes([value]) * 5000)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert target.read_bytes() in (bytes([1]) * 5000, bytes([2]) * 5000) and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool) -> None:
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    target = tmp_path / ("n" * 250)
    write_atomically(target, b"old")
    assert stat.S_IMODE(target.stat().st_mode) == 0o644

    def fail(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    for text in (b"one", b"two"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "file").read_bytes() == text
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"through")
    assert os.read(reader, 99) == b"through" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)
    with pytest.raises(IsADirectoryError, match="must be a file to write, got a folder"):
        write_atomically(tmp_path / "real", b"")


def test_a_folder_in_use_is_waited_for_and_no_longer_than_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    with files.one_at_a_time(tmp_path):
        monkeypatch.setattr(time, "sleep", asked.append)
        monkeypatch.setattr(time, "monotonic", lambda: float(len(asked)))
        with files.one_at_a_time(tmp_path):
            assert len(asked) == files.PATIENCE
    with files.one_at_a_time(tmp_path):  # free again
        assert len(asked) == files.PATIENCE


def test_a_file_system_without_locks_makes_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited"))
    with files.one_at_a_time(tmp_path):
        assert list(tmp_path.iterdir()) == []
