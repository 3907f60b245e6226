"""From a name, a path or an address to a file on this machine and its entry of the catalogue."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from esbnn_core.checkpoint.catalogue import Entry, is_path, read_catalogue
from esbnn_core.checkpoint.fetch import check_file, checkpoint_cache, fetch
from esbnn_core.checkpoint.format import Checkpoint, read_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.files import file_sha256
from tasks.evaluate.options import EvaluateRequest, check_options


@dataclass(frozen=True)
class Target:
    """A file to evaluate: hashed once, when it is found, and parsed once.

    Attributes:
        path: of the file.
        entry: of the catalogue, None for a file that is not in it.
        sha256: of the file.
        bytes: of the file.
    """

    path: str
    entry: Entry | None
    sha256: str
    bytes: int

    @property
    def ours(self) -> bool:
        """Whether it is a file in this project's format."""
        return self.path.endswith(".safetensors")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What a file of ours holds, read on first use."""
        return read_checkpoint(self.path)


def find_target(request: EvaluateRequest) -> Target:
    """The file that is asked for, fetched if need be, its size and hash checked where the catalogue has them.

    Raises:
        InputError: an unknown name, a file that is missing or is not the entry's, an option that an entry excludes.
    """
    path, entry = _find_file(request)
    # the file of an entry with a hash was compared with it a moment ago
    sha256 = entry.sha256 if entry is not None and entry.sha256 else file_sha256(path)
    return Target(path, entry, sha256, Path(path).stat().st_size)


def _find_file(request: EvaluateRequest) -> tuple[str, Entry | None]:
    target = request.target
    is_address = target.startswith(("http://", "https://"))
    if request.entry is None and (is_address or is_path(target)):
        if is_address:
            return str(fetch(target, checkpoint_cache())), None
        _check_exists(target)
        return target, None
    catalogue = read_catalogue(request.catalogue)
    entry = catalogue.find(request.entry or target)
    if not entry.readable:
        raise InputError(f"checkpoint {entry.name} cannot be read by this project: {entry.note}")
    check_options(request, entry.task, entry)  # before anything is fetched
    if request.entry is None:
        return str(fetch(entry, checkpoint_cache(), files=catalogue.folder)), entry
    if is_address:
        return str(fetch(replace(entry, file=None, url=target, access="direct"), checkpoint_cache())), entry
    _check_exists(target)
    check_file(Path(target), entry.sha256, entry.bytes, f"it is not the file of {entry.name}, fetch it again")
    return target, entry


def _check_exists(target: str) -> None:
    if "://" in target:
        raise InputError(f"address must begin with http:// or https://, got {target}: give that, or a PATH")
    if not Path(target).is_file():
        state = "is a folder" if Path(target).is_dir() else "does not exist"
        raise InputError(f"checkpoint {target} {state}: give the path of a file, or a name of --list")
