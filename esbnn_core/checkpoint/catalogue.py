"""The catalogue of released checkpoints: checkpoints/manifest.json, read strictly, its entries found by name."""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT

FOLDER = ROOT / "checkpoints"
"""Where the files lie that the repository itself holds."""
CATALOGUE = FOLDER / "manifest.json"
TASKS = ("classification", "detection", "super_resolution")
ACCESS = ("file", "direct", "page")
CONTAINERS = ("safetensors", "pytorch")
SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
"""Endings of checkpoint files."""

_TEXT, _NUMBER = (str,), (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    **{"name": _TEXT, "task": _TEXT, "network": _TEXT, "options": (dict,), "dataset": _TEXT, "split": _TEXT},
    **{"metric": _TEXT, "value": (*_NUMBER, type(None)), "tolerance": _NUMBER, "file": (str, type(None))},
    **{"url": (str, type(None)), "access": _TEXT, "sha256": _TEXT, "bytes": (int, type(None)), "licence": _TEXT},
    **{"container": _TEXT, "keys": _TEXT, "config": _TEXT, "command": _TEXT, "source": _TEXT, "note": _TEXT},
}


@dataclass(frozen=True)
class Entry:
    """One released file, what it holds and what it reached.

    Attributes:
        name: by which it is asked for. task: of TASKS.
        network: for create_model, or of its task's own; "" where this project has none for it. options: of the network;
            outside classification the config's overrides.
        dataset, split, metric: what `value` was measured on and as; metric "" for a file that nothing is measured of.
        value: None where none is known. tolerance: how far from it a measurement may lie, in the metric's own unit.
        file: below checkpoints/, or None. url: or None; exactly one of the two is given.
        access: "file", "direct" (the url answers with the file) or "page" (a person has to download it there).
        sha256: "" while nobody has had the file. bytes: None likewise.
        licence: of the file. container: of CONTAINERS. keys: family of official names
        (esbnn_core.checkpoint.official_keys), ""
            for a file of this project, and for one of the originals that it cannot read.
        config: recipe below the repository that builds the network or trained it, or "". command: that made the file.
        source: where the value is published, "" for our own. note: what else a person should know.
    """

    name: str
    task: str
    network: str
    options: dict[str, Any]
    dataset: str
    split: str
    metric: str
    value: float | None
    tolerance: float
    file: str | None
    url: str | None
    access: str
    sha256: str
    bytes: int | None
    licence: str
    container: str
    keys: str
    config: str
    command: str
    source: str
    note: str

    @property
    def ours(self) -> bool:
        """Whether it is a file of this project, not of the originals."""
        return self.container == "safetensors"

    @property
    def readable(self) -> bool:
        """Whether this project can read its file: it has no names for the weights of some official ones."""
        return self.ours or bool(self.keys)

    def json(self) -> str:
        """The entry as it stands in the manifest."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Catalogue:
    """Entries in the order of the file.

    Attributes:
        folder: what an entry's `file` lies in.
    """

    folder: Path
    entries: tuple[Entry, ...]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def find(self, name: str) -> Entry:
        """The entry of that name. Raises InputError with the nearest names."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        near = difflib.get_close_matches(name, [entry.name for entry in self.entries], n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "python -m tasks.evaluate --list shows all names"
        raise InputError(f"checkpoint {name!r} is neither a file nor a name of the catalogue: {hint}")

    def table(self) -> str:
        """All entries for people: name, task, data, published or measured value, where the file is, its sha256."""
        head = ("name", "task", "data", "metric", "value", "file", "sha256")
        rows = [head, *(_row(entry) for entry in self.entries)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def _row(entry: Entry) -> tuple[str, ...]:
    where = {"file": f"checkpoints/{entry.file}", "direct": "fetched", "page": "by hand"}[entry.access]
    value = "-" if entry.value is None else f"{entry.value:g}"
    data = f"{entry.dataset}/{entry.split}" if entry.split else entry.dataset
    return entry.name, entry.task, data or "-", entry.metric or "-", value, where, entry.sha256[:12] or "not known"


def is_path(source: str | Path) -> bool:
    """Whether a source is a path and not a name of the catalogue: by its form, or because the file exists."""
    text = str(source)
    return os.sep in text or text.endswith(SUFFIXES) or Path(text).is_file()


def read_catalogue(path: str | Path = CATALOGUE) -> Catalogue:
    """Read a manifest, {"checkpoints": [entry, ...]}, every key of every entry checked.

    Raises:
        InputError: an unreadable file, an unknown or missing key, a key or name met twice, a value of another type or
            form, neither or both of file and url; the entry and the key are named.
    """
    path = Path(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A json object; json itself would take the last of two values."""
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                name = dict(pairs).get("name")
                which = f"of {name!r}" if name is not None else "in one object"
                raise InputError(f"catalogue {path} has the key {key!r} {which} twice: take one out")
            made[key] = value
        return made

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"catalogue {path} does not exist: run in a checkout of the repository") from error
    except (OSError, ValueError) as error:
        raise InputError(f"catalogue {path} cannot be read as json ({error}): correct it") from error
    if not isinstance(found, dict) or list(found) != ["checkpoints"] or not isinstance(found["checkpoints"], list):
        raise InputError(f'catalogue {path} has another form, {{"checkpoints": [entries]}} was expected: correct it')
    entries: list[Entry] = []
    for number, given in enumerate(found["checkpoints"], start=1):
        entry = make_entry(given, f"catalogue {path}, entry {number}")
        if any(other.name == entry.name for other in entries):
            raise InputError(f"catalogue {path} has the name {entry.name} twice: rename one")
        entries.append(entry)
    return Catalogue(path.parent, tuple(entries))


def make_entry(given: object, where: str) -> Entry:
    """An entry of a json object, checked. Raises InputError, which begins with `where`."""
    if not isinstance(given, dict):
        raise InputError(f"{where} is {type(given).__name__}, a json object was expected")
    if isinstance(given.get("name"), str):
        where = f"{where} ({given['name']})"
    known = [field.name for field in fields(Entry)]
    for key in given:
        if key not in known:
            raise InputError(f"{where} has the key {key!r}, only {', '.join(known)} were expected: take it out")
    for key in known:
        if key not in given:
            raise InputError(f"{where} has no key {key!r}: add it")
        # True is an int in Python, and no number in a manifest
        if not isinstance(given[key], _TYPES[key]) or isinstance(given[key], bool):
            kinds = " or ".join({"NoneType": "null"}.get(kind.__name__, kind.__name__) for kind in _TYPES[key])
            raise InputError(f"{where} has {key} {given[key]!r}, {kinds} was expected: correct it")
    entry = Entry(**{**given, "value": None if given["value"] is None else _float(given["value"])})
    for fault in _faults(entry):
        raise InputError(f"{where} has {fault}: correct it")
    return entry


def _float(number: float) -> float:
    """As a float; infinite for a whole number that none can hold."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def name_fault(name: str) -> str:
    """What is wrong with the name of an entry, "" for nothing."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return ""
    return f"name {name!r}, small letters, digits, _ and - were expected"


def _faults(entry: Entry) -> Iterable[str]:
    """What is wrong with an entry whose types are right."""
    if told := name_fault(entry.name):
        yield told
    for key, allowed in (("task", TASKS), ("access", ACCESS), ("container", CONTAINERS)):
        if getattr(entry, key) not in allowed:
            yield f"{key} {getattr(entry, key)!r}, one of {', '.join(allowed)} was expected"
    if (entry.file is None) == (entry.url is None):
        yield f"file {entry.file!r} and url {entry.url!r}, exactly one of them was expected"
    if (entry.file is None) == (entry.access == "file"):
        yield f"access {entry.access!r}, 'file' was expected with a file and 'direct' or 'page' with a url"
    if entry.url is not None and not re.fullmatch(r"https?://\S+", entry.url):
        yield f"url {entry.url!r}, an address that begins with http:// or https:// was expected"
    if entry.file is not None and not _inside(entry.file):
        yield f"file {entry.file!r}, a path below checkpoints/ was expected"
    if not re.fullmatch(r"([0-9a-f]{64})?", entry.sha256):
        yield f"sha256 {entry.sha256!r}, 64 small hexadecimal digits or nothing was expected"
    if entry.file is not None and (not entry.sha256 or entry.bytes is None):
        yield "a file without its sha256 or bytes, both were expected"
    if entry.bytes is not None and entry.bytes < 1:
        yield f"bytes {entry.bytes}, 1 or more were expected"
    if not 0 <= _float(entry.tolerance) < math.inf:
        yield f"tolerance {_float(entry.tolerance):g}, 0 or more was expected"
    if entry.value is not None and not math.isfinite(entry.value):
        yield f"value {json.dumps(entry.value)}, a finite number or null was expected"
    if entry.value is not None and not entry.metric:
        yield f"value {entry.value:g} and no metric, the name of what was measured was expected"
    if entry.metric and not entry.dataset:
        yield f"metric {entry.metric!r} and no dataset, what it is measured on was expected"


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and "\\" not in name and not path.is_absolute() and ".." not in path.parts
