"""A released file on this machine: from the repository, from the cache, or over HTTP, its hash checked before use.

A download goes to NAME.TAG.part, where TAG stands for the version that the server names (ETag or Last-Modified), and
is renamed when its size and sha256 are right. What broke off is continued by the next call.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from esbnn_core.checkpoint.catalogue import FOLDER, Entry
from esbnn_core.errors import DamagedError, InputError
from esbnn_core.files import cache_folder, file_sha256
from esbnn_core.version import __version__

TIMEOUT = 60
"""Seconds that a server may be silent."""
BLOCK = 1 << 20

_UNFINISHED = (".part", ".crdownload", ".download")
"""Endings of what Firefox, Chrome and Safari have not finished."""

_ONCE = "once"
"""In the name of a part whose server names no version: it cannot be continued, and is not kept."""


@dataclass(frozen=True)
class _Wanted:
    """What is to be fetched: its address, and sha256 ("") and bytes (None) where they are known."""

    url: str
    sha256: str
    bytes: int | None


def checkpoint_cache() -> Path:
    """Where downloads lie: beside the built kernels (ESBNN_CACHE, or esbnn under XDG_CACHE_HOME or ~/.cache)."""
    return cache_folder() / "checkpoints"


def fetch(source: Entry | str, folder: str | Path, *, files: str | Path = FOLDER) -> Path:
    """The path of an entry's file or of what an address answers with, fetched into `folder` if it is not there.

    Args:
        source: an entry, or an http(s) address. folder: of downloads (checkpoint_cache()); what a person downloaded
            lies there as NAME with an ending.
        files: what an entry's `file` lies in.

    Returns:
        a file of the right size and sha256, as far as they are known. Without a known sha256 a file that was fetched
        before is taken as it is.

    Raises:
        InputError: an entry that a person has to download; a missing, unreachable or interrupted file; a folder that
            cannot be made; a size or hash that differs, or a page or nothing in place of a file, of which nothing is
            left behind.
    """
    if isinstance(source, str):
        wanted = _Wanted(source, "", None)
    elif source.file is not None:
        path = Path(files) / source.file
        if not path.is_file():
            raise InputError(f"checkpoint {source.name} has no file {path}: take it from the repository again")
        check_file(path, source.sha256, source.bytes, "take it from the repository again, or correct the manifest")
        return path
    elif source.access == "page":
        return _by_hand(source, Path(folder))
    else:
        wanted = _Wanted(str(source.url), source.sha256, source.bytes)
    target = Path(folder) / _name(wanted)
    if target.is_file():
        with contextlib.suppress(InputError):  # damaged since it was fetched: fetched anew
            check_file(target, wanted.sha256, wanted.bytes, "")
            return target
        target.unlink()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror  # without the path again
        raise InputError(
            f"{target.parent}, the folder for downloads, cannot be made ({why}): let ESBNN_CACHE name another"
        ) from error
    with _alone(wanted.url, target):
        _download(wanted, target)
    return target


def drop(path: str | Path) -> bool:
    """Remove a fetched file that cannot be read, so that the next fetch asks the server again.

    Nothing but a file directly in checkpoint_cache() goes that `fetch` named by its address: one whose sha256 was
    known is what it should be, and what a person keeps there has another name.

    Returns:
        whether it was removed.
    """
    path = Path(path)
    if not re.fullmatch(r"[0-9a-f]{16}-[\w.-]+", path.name) or path.suffix == ".part":
        return False
    with contextlib.suppress(OSError):  # the caller has an error to tell already
        if path.is_file() and not path.is_symlink() and path.parent.resolve() == checkpoint_cache().resolve():
            path.unlink()
            return True
    return False


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


def downloaded(entry: Entry, folder: Path) -> list[Path]:
    """The files in `folder` that a person downloaded under the entry's name; one is what fetch takes."""
    return sorted(path for path in folder.glob(f"{entry.name}.*") if path.suffix not in _UNFINISHED)


def _by_hand(entry: Entry, folder: Path) -> Path:
    """The file that a person downloaded into `folder` under the entry's name. Raises InputError."""
    found = downloaded(entry, folder)
    if len(found) > 1:
        raise InputError(f"checkpoint {entry.name} is there twice, {found[0]} and {found[1]}: keep one")
    if not found:
        raise InputError(
            f"checkpoint {entry.name} lies behind a page for people: download it in a browser from {entry.url} and "
            f"run python -m tasks.evaluate PATH --entry {entry.name}, or keep it as {folder / entry.name}.pth"
        )
    check_file(found[0], entry.sha256, entry.bytes, "download it again")
    return found[0]


def check_file(path: Path, sha256: str, size: int | None, fix: str, label: str = "") -> None:
    """Raise InputError unless the file has this size and sha256, as far as they are known (None, "").

    Args:
        label: what the file is called in the message, default its path.
    """
    label, met = label or str(path), path.stat().st_size
    if size is not None and met != size:
        raise InputError(f"checkpoint {label} has {met:,} bytes, {size:,} were expected: {fix}")
    if sha256 and (found := file_sha256(path)) != sha256:
        raise InputError(f"checkpoint {label} has sha256 {found}, {sha256} was expected: {fix}")


def _name(wanted: _Wanted) -> str:
    """Named by what is known of the content, else by the address; the ending stays, readers go by it."""
    try:
        parts = urlsplit(wanted.url)
        wanted.url.encode("ascii")
    except ValueError as error:
        raise InputError(
            f"address {wanted.url} is none ({error}): write other letters as %XX and names in full"
        ) from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"address {wanted.url} was given, http://... or https://... was expected")
    last = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(parts.path)).name)[-80:] or "file"
    return f"{wanted.sha256 or hashlib.sha256(wanted.url.encode()).hexdigest()[:16]}-{last}"


@contextlib.contextmanager
def _alone(url: str, target: Path) -> Iterator[None]:
    """Let one process at a time fetch a file: two would write one part. Raises InputError for the second."""
    lock = target.with_name(f".{target.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            while True:
                file = held.enter_context(open(lock, "ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # the process before removes its lock as it ends: what was opened until then locks nobody out
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                        break
        except BlockingIOError as error:
            raise InputError(f"another process is fetching {url}: wait for it and run again") from error
        except OSError as error:
            raise InputError(
                f"{target.parent} cannot be locked ({error}): let ESBNN_CACHE name one that can be written and locked"
            ) from error
        held.callback(lock.unlink, missing_ok=True)  # before the file is closed, while it is held
        yield


def _download(wanted: _Wanted, target: Path) -> None:
    """Fetch into `target`, from where an earlier call broke off if that can be. Raises InputError."""
    try:
        for part in sorted(target.parent.glob(f"{target.name}.*.part")):
            if _continued(wanted, target, part):
                return
            part.unlink(missing_ok=True)
        with _open(wanted.url, 0) as answer:
            _receive(wanted, target, _part(target, answer), answer, 0)
    except InputError:
        raise
    # urllib's own are OSErrors; a host or a length that cannot be is a ValueError
    except (http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            reason: object = f"HTTP {error.code} {error.reason}"
        else:
            reason = getattr(error, "reason", None) or error
        told = " ".join(str(reason).split())  # that of a redirect loop has three lines
        raise InputError(f"{wanted.url} cannot be fetched ({told}): check the address and the network") from error


def _continued(wanted: _Wanted, target: Path, part: Path) -> bool:
    """Whether the rest of `part` came; not if the server has another version of the file or sends it as a whole."""
    start = part.stat().st_size
    if start == 0 or _without_version(part):  # that of a process that was killed
        return False
    try:
        with _open(wanted.url, start) as answer:
            begins = re.match(rf"bytes {start}-", answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not begins or part != _part(target, answer):
                return False
            _receive(wanted, target, part, answer, start)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the file is no longer than the part
            raise
        return False
    return True


def _open(url: str, start: int) -> Any:
    """The server's answer, from byte `start` on where it can."""
    # identity: the bytes that are counted are those of the file
    headers = {"User-Agent": f"esbnn/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _part(target: Path, answer: Any) -> Path:
    """Where an answer is kept until it is whole."""
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    tag = hashlib.sha256(version.encode()).hexdigest()[:12] if version else _ONCE
    return target.with_name(f"{target.name}.{tag}.part")


def _without_version(part: Path) -> bool:
    """Whether nothing tells that the server's file is still the one that the part was of."""
    return part.name.endswith(f".{_ONCE}.part")


def _receive(wanted: _Wanted, target: Path, part: Path, answer: Any, start: int) -> None:
    """Append the answer to `part`, check the whole and rename it. Raises InputError."""
    url, length = wanted.url, answer.headers.get("Content-Length")
    whole = start + int(length) if length is not None else None
    if answer.status == 204:
        raise InputError(f"{url} answers that it has no content (HTTP 204), a file was expected: check the address")
    if answer.headers.get_content_type() == "text/html":
        raise InputError(f"{url} answers with a page, not with a file: download it in a browser and give its PATH")
    if wanted.bytes is not None and whole is not None and whole != wanted.bytes:
        part.unlink(missing_ok=True)
        raise InputError(f"{url} has {whole:,} bytes, {wanted.bytes:,} were expected: it is another file")
    kept = not _without_version(part)
    try:
        with open(part, "ab") as file:
            _copy(answer, file, wanted.bytes)
            if whole is not None and file.tell() < whole:
                raise ConnectionError(f"the connection ended after {file.tell():,} of {whole:,} bytes")
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:  # also where a person stops it
        if not kept:
            part.unlink(missing_ok=True)
        if not isinstance(error, http.client.HTTPException | OSError):
            raise
        again = "run again, it goes on from there" if kept else "run again"
        raise InputError(f"the download of {url} broke off ({error}): {again}") from error
    try:
        if not part.stat().st_size:
            raise InputError(f"{url} answers with 0 bytes, a file was expected: check the address, or fetch it again")
        check_file(part, wanted.sha256, wanted.bytes, "fetch it again, or correct the entry", url)
    except InputError:
        part.unlink()
        raise
    os.replace(part, target)


def _copy(answer: Any, file: IO[bytes], limit: int | None) -> None:
    """All blocks of an answer, or enough of them to see that it has more bytes than `limit`."""
    while block := answer.read(BLOCK):
        file.write(block)
        if limit is not None and file.tell() > limit:
            return
