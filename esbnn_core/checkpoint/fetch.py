"""A released file on this machine: from the repository, from the cache, or downloaded, its hash checked before use."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from esbnn_core.checkpoint.catalogue import FOLDER, Entry
from esbnn_core.checkpoint.download import Download, check_file, download, file_name
from esbnn_core.errors import DamagedError, InputError
from esbnn_core.files import cache_folder

__all__ = ["check_file", "checkpoint_cache", "downloaded", "drop", "drop_if_damaged", "fetch"]

_UNFINISHED = (".part", ".crdownload", ".download")
"""Endings of what Firefox, Chrome and Safari have not finished."""


def checkpoint_cache() -> Path:
    """Folder of downloads, beside the built kernels: below ESBNN_CACHE, or esbnn in XDG_CACHE_HOME or ~/.cache."""
    return cache_folder() / "checkpoints"


def fetch(source: Entry | str, folder: str | Path, *, files: str | Path = FOLDER) -> Path:
    """The path of an entry's file, or of what an address answers with, downloaded if it is not there.

    Args:
        source: an entry, or an http(s) address.
        folder: of downloads (checkpoint_cache()); a file that a person downloads is kept there as NAME with an ending.
        files: folder that an entry's `file` is below.

    Returns:
        a file of the right size and sha256, as far as they are known. Without a known sha256 a file that was fetched
        before is taken as it is.

    Raises:
        InputError: an entry that a person has to download; a missing, unreachable or interrupted file; a folder that
            cannot be made; a wrong size or hash, or a page or nothing in place of a file, of which nothing is kept.
    """
    if isinstance(source, str):
        wanted = Download(source, "", None)
    elif source.file is not None:
        path = Path(files) / source.file
        if not path.is_file():
            raise InputError(f"checkpoint {source.name} has no file {path}: take it from the repository again")
        check_file(path, source.sha256, source.bytes, "take it from the repository again, or correct the manifest")
        return path
    elif source.access == "page":
        return _find_downloaded(source, Path(folder))
    else:
        wanted = Download(str(source.url), source.sha256, source.bytes)
    target = Path(folder) / file_name(wanted)
    if target.is_file():
        with contextlib.suppress(InputError):  # damaged since it was fetched: fetched again
            check_file(target, wanted.sha256, wanted.bytes, "")
            return target
        target.unlink()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror  # without the path again
        raise InputError(
            f"{target.parent}, the folder for downloads, cannot be made ({reason}): let ESBNN_CACHE name another"
        ) from error
    download(wanted, target)
    return target


def downloaded(entry: Entry, folder: Path) -> list[Path]:
    """The files in `folder` that a person downloaded under the entry's name; fetch takes one if it is the only one."""
    return sorted(path for path in folder.glob(f"{entry.name}.*") if path.suffix not in _UNFINISHED)


def _find_downloaded(entry: Entry, folder: Path) -> Path:
    """The file that a person downloaded into `folder` under the entry's name. Raises InputError."""
    found = downloaded(entry, folder)
    if len(found) > 1:
        raise InputError(f"checkpoint {entry.name} is there twice, {found[0]} and {found[1]}: keep one")
    if not found:
        raise InputError(
            f"checkpoint {entry.name} can only be downloaded from a web page: open {entry.url} in a browser and "
            f"run python -m tasks.evaluate PATH --entry {entry.name}, or keep it as {folder / entry.name}.pth"
        )
    check_file(found[0], entry.sha256, entry.bytes, "download it again")
    return found[0]


@contextlib.contextmanager
def drop_if_damaged(path: str | Path) -> Iterator[None]:
    """Drop a fetched file whose reading raises DamagedError, or every later call would take it from the cache.

    Raises:
        InputError: in place of the DamagedError where the file was dropped.
    """
    try:
        yield
    except DamagedError as error:
        if drop(path):
            raise InputError(f"{error}; it was removed from the cache") from error
        raise


def drop(path: str | Path) -> bool:
    """Remove a fetched file that cannot be read, so that the next fetch asks the server again.

    Only a file directly in checkpoint_cache() that `fetch` named by its address is removed: one whose sha256 was known
    is what it should be, and what a person keeps there has another name.

    Returns:
        whether it was removed.
    """
    path = Path(path)
    if not re.fullmatch(r"[0-9a-f]{16}-[\w.-]+", path.name) or path.suffix == ".part":
        return False
    with contextlib.suppress(OSError):  # the caller already has an error to report
        if path.is_file() and not path.is_symlink() and path.parent.resolve() == checkpoint_cache().resolve():
            path.unlink()
            return True
    return False
