"""Where files are, and how one is written whole: repository paths, the cache folder, hashes, atomic writes."""

import hashlib
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Folder of configs/ and checkpoints/ in a source tree."""


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
    """Write a temporary file in the same folder, fsync and rename it: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp gives 0600, which others cannot read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this copy of the repository: PYTHONPATH begins with ROOT."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
