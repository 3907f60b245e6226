"""Where files are, and how one is written whole: repository paths, the cache folder, hashes, atomic writes."""

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
"""Folder of configs/ and checkpoints/ in a source tree."""
STALE = 3600
"""Seconds after which the temporary folder of another process is taken for that of a killed one."""
PATIENCE = 120.0
"""Seconds that a process waits for another one's work in a folder."""


def below_repository(path: str | Path) -> Path:
    """The path as given, or the one below the repository if only that is a file."""
    found = Path(path)
    within = ROOT / found
    return within if not found.exists() and within.is_file() else found


def cache_folder() -> Path:
    """Folder of built libraries and downloads: ESBNN_CACHE, or esbnn in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("ESBNN_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esbnn"


def file_sha256(path: str | Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a temporary file in the same folder, fsync and rename it: readers see the old file or the new one.

    A link stays one, and its target is replaced. A device or pipe, /dev/stdout, is written into: renaming would put a
    file in its place.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as stream:
            stream.write(data)
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file to write, got a folder: name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    name = ""
    try:
        file, name = _open_temporary(path)
        with file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # it begins with 0600, which others cannot read
            os.fsync(file.fileno())
            if not name:
                _give_name(file.fileno(), path)
                return
        os.replace(name, path)
    except BaseException:
        if name:
            Path(name).unlink(missing_ok=True)
        raise


def _open_temporary(path: Path) -> tuple[IO[bytes], str]:
    """A file in the folder of `path`, without a name where Linux can do that: a process that is killed leaves nothing.

    Returns:
        The file and its name, "" for none.
    """
    if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
        try:
            return os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600), "wb"), ""
        except OSError:  # not on this file system
            pass
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:200]}.")
    return os.fdopen(handle, "wb"), name


def _give_name(file: int, path: Path) -> None:
    """Put an open file without a name, which is whole, in the place of `path`.

    The name that it has in between is its own, so that processes that write the same file do not meet. One that is
    killed in this moment leaves it, hidden.
    """
    between = str(path.parent / f".{path.name[:200]}.{os.getpid()}.{os.urandom(4).hex()}")
    # with a folder, which the absolute path ignores, Python calls linkat, which follows the link
    os.link(f"/proc/self/fd/{file}", between, src_dir_fd=file)
    try:
        os.replace(between, path)
    except BaseException:
        Path(between).unlink(missing_ok=True)
        raise


@contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder next to `folder`, to write its files in before they are moved there; removed in the end.

    Those that killed processes left there go too, once they are older than STALE.
    """
    parent, prefix = folder.absolute().parent, f".{folder.name}."
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{glob.escape(prefix)}????????"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary)


@dataclass(frozen=True)
class Turn:
    """What one_at_a_time gives; false if another process is in the folder.

    Attributes:
        alone: whether no other process is.
        handle: of the lock. A child that is given it keeps the folder locked until it has ended.
    """

    alone: bool
    handle: int

    def __bool__(self) -> bool:
        return self.alone


@contextmanager
def one_at_a_time(folder: Path, patience: float = PATIENCE) -> Iterator[Turn]:
    """Wait until no other process is in this block for `folder`, which exists, so that what one makes serves all.

    It saves work and promises nothing: where the file system has no locks, or after `patience` seconds, this process
    goes on beside the others. A killed process waits for nobody and leaves nothing.

    Args:
        folder: of the work.
        patience: seconds; 0 asks once.

    Yields:
        false if another process is in it, patience at an end; true also where the file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while not (alone := _lock(handle)) and time.monotonic() < end:
            time.sleep(0.05)
        yield Turn(alone, handle)
    finally:
        # not by closing alone: a process that was forked meanwhile has it open too
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _lock(handle: int) -> bool:
    """False if another process has it locked; True also where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not on this file system
        pass
    return True


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this copy of the repository: PYTHONPATH begins with ROOT."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
