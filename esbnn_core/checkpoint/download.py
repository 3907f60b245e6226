"""A file over HTTP: continued where it broke off, compared with its size and sha256, one process at a time.

A download goes to NAME.TAG.part, where TAG is for the version that the server names (ETag or Last-Modified), and is
renamed when its size and sha256 are right. The next call continues what broke off.
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

from esbnn_core.errors import InputError
from esbnn_core.files import file_sha256
from esbnn_core.version import __version__

TIMEOUT = 60
"""Seconds that a server may be silent."""
BLOCK = 1 << 20
"""Bytes that are read at a time."""

_NO_VERSION = "once"
"""TAG of a part whose server names no version: it cannot be continued, and is not kept."""


@dataclass(frozen=True)
class Download:
    """What is to be fetched.

    Attributes:
        url: where from.
        sha256: of the file, "" where it is not known.
        bytes: of the file, None where they are not known.
    """

    url: str
    sha256: str
    bytes: int | None


def file_name(wanted: Download) -> str:
    """Name for the file: its sha256, or a hash of the address, and the address's ending, which readers go by.

    Raises:
        InputError: an address that is not one of http or https.
    """
    try:
        parts = urlsplit(wanted.url)
        wanted.url.encode("ascii")
    except ValueError as error:
        raise InputError(
            f"address {wanted.url} is not valid ({error}): write other letters as %XX and names in full"
        ) from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"address must begin with http:// or https:// and a host, got {wanted.url}: correct it")
    last = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(parts.path)).name)[-80:] or "file"
    return f"{wanted.sha256 or hashlib.sha256(wanted.url.encode()).hexdigest()[:16]}-{last}"


def check_file(path: Path, sha256: str, size: int | None, fix: str, label: str = "") -> None:
    """Raise InputError unless the file has this size and sha256.

    Args:
        path: of the file.
        sha256: "" where it is not known.
        size: in bytes, None where it is not known.
        fix: what to do about it, for the message.
        label: what the file is called in the message; default its path.
    """
    label, found_size = label or str(path), path.stat().st_size
    if size is not None and found_size != size:
        raise InputError(f"checkpoint {label} must have {size:,} bytes, got {found_size:,}: {fix}")
    if sha256 and (found := file_sha256(path)) != sha256:
        raise InputError(f"checkpoint {label} must have sha256 {sha256}, got {found}: {fix}")


def download(wanted: Download, target: Path) -> None:
    """Fetch into `target`, from where an earlier call broke off if the server can do that.

    Raises:
        InputError: another process is fetching it; a file that cannot be reached, broke off or is not the right one.
    """
    with _lock(wanted.url, target):
        try:
            for part in sorted(target.parent.glob(f"{target.name}.*.part")):
                if _continue(wanted, target, part):
                    return
                part.unlink(missing_ok=True)
            with _open(wanted.url, 0) as answer:
                _receive(wanted, target, _part_of(target, answer), answer, 0)
        except InputError:
            raise
        # urllib's own are OSErrors; an impossible host or length is a ValueError
        except (http.client.HTTPException, OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                reason: object = f"HTTP {error.code} {error.reason}"
            else:
                reason = getattr(error, "reason", None) or error
            reason = " ".join(str(reason).split())  # that of a redirect loop has three lines
            raise InputError(f"{wanted.url} cannot be fetched ({reason}): check the address and the network") from error


@contextlib.contextmanager
def _lock(url: str, target: Path) -> Iterator[None]:
    """Let one process at a time fetch a file: two would write one part. Raises InputError for the second."""
    lock = target.with_name(f".{target.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            while True:
                file = held.enter_context(open(lock, "ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # a process removes its lock as it ends: a file that was opened before that locks nobody out
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


def _continue(wanted: Download, target: Path, part: Path) -> bool:
    """Fetch the rest of `part`; False if the server has another version of the file or sends it as a whole."""
    start = part.stat().st_size
    if start == 0 or _has_no_version(part):  # left by a process that was killed
        return False
    try:
        with _open(wanted.url, start) as answer:
            begins = re.match(rf"bytes {start}-", answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not begins or part != _part_of(target, answer):
                return False
            _receive(wanted, target, part, answer, start)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the file is not longer than the part
            raise
        return False
    return True


def _open(url: str, start: int) -> Any:
    """The server's answer, from byte `start` on if it can."""
    # identity: the bytes that are counted are those of the file
    headers = {"User-Agent": f"esbnn/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _part_of(target: Path, answer: Any) -> Path:
    """Where an answer is kept until it is whole."""
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    tag = hashlib.sha256(version.encode()).hexdigest()[:12] if version else _NO_VERSION
    return target.with_name(f"{target.name}.{tag}.part")


def _has_no_version(part: Path) -> bool:
    """Whether it cannot be known that the part is of the file that the server has now."""
    return part.name.endswith(f".{_NO_VERSION}.part")


def _receive(wanted: Download, target: Path, part: Path, answer: Any, start: int) -> None:
    """Append the answer to `part`, check the whole and rename it. Raises InputError."""
    url, length = wanted.url, answer.headers.get("Content-Length")
    whole = start + int(length) if length is not None else None
    if answer.status == 204:
        raise InputError(f"{url} answers that it has no content (HTTP 204): check the address")
    if answer.headers.get_content_type() == "text/html":
        raise InputError(f"{url} answers with a page, not with a file: download it in a browser and give its PATH")
    if wanted.bytes is not None and whole is not None and whole != wanted.bytes:
        part.unlink(missing_ok=True)
        raise InputError(f"{url} must have {wanted.bytes:,} bytes, got {whole:,}: it is another file")
    _append(url, part, answer, whole, wanted.bytes)
    try:
        if not part.stat().st_size:
            raise InputError(f"{url} answers with 0 bytes: check the address, or fetch it again")
        check_file(part, wanted.sha256, wanted.bytes, "fetch it again, or correct the entry", url)
    except InputError:
        part.unlink()
        raise
    os.replace(part, target)


def _append(url: str, part: Path, answer: Any, whole: int | None, limit: int | None) -> None:
    """Write an answer to the end of `part`; what broke off stays if it can be continued. Raises InputError."""
    can_continue = not _has_no_version(part)
    try:
        with open(part, "ab") as file:
            _copy(answer, file, limit)
            if whole is not None and file.tell() < whole:
                raise ConnectionError(f"the connection ended after {file.tell():,} of {whole:,} bytes")
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:  # Ctrl-C too
        if not can_continue:
            part.unlink(missing_ok=True)
        if not isinstance(error, http.client.HTTPException | OSError):
            raise
        again = "run again, it goes on from there" if can_continue else "run again"
        raise InputError(f"the download of {url} broke off ({error}): {again}") from error


def _copy(answer: Any, file: IO[bytes], limit: int | None) -> None:
    """All blocks of an answer, or enough of them to find that it has more bytes than `limit`."""
    while block := answer.read(BLOCK):
        file.write(block)
        if limit is not None and file.tell() > limit:
            return
