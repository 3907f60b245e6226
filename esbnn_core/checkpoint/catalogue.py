"""The catalogue of released checkpoints: checkpoints/manifest.json, read strictly, its entries found by name."""

import difflib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT

FOLDER = ROOT / "checkpoints"
"""Folder of the files that the repository holds."""
CATALOGUE = FOLDER / "manifest.json"
TASKS = ("classification", "detection", "super_resolution")
ACCESS = ("file", "direct", "page")
CONTAINERS = ("safetensors", "pytorch")
SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
"""Endings of checkpoint files."""

_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "task", "network", "dataset", "split", "metric", "access", "sha256", "licence"), (str,)),
    **dict.fromkeys(("container", "keys", "config", "command", "source", "note"), (str,)),
    **dict.fromkeys(("file", "url"), (str, type(None))),
    "options": (dict,),
    "value": (int, float, type(None)),
    "tolerance": (int, float),
    "bytes": (int, type(None)),
}


@dataclass(frozen=True)
class Entry:
    """One released file, what it holds and what it reached.

    Attributes:
        name: by which it is asked for.
        task: of TASKS.
        network: for create_model, or of its task's own; "" where this project has none for it.
        options: of the network; outside classification the config's overrides.
        dataset: what `value` was measured on.
        split: of the dataset.
        metric: name of the measurement, "" for a file that nothing is measured of.
        value: None where none is known.
        tolerance: how far from the value a measurement may be, in the metric's own unit.
        file: below checkpoints/, or None.
        url: or None; exactly one of file and url is given.
        access: "file", "direct" (the url answers with the file) or "page" (a person has to download it there).
        sha256: "" while nobody has had the file.
        bytes: None while nobody has had the file.
        licence: of the file.
        container: of CONTAINERS.
        keys: family of official names (esbnn_core.checkpoint.official_keys); "" for a file of this project, and for an
            official file that this project cannot read.
        config: recipe below the repository that builds the network or trained it, or "".
        command: that made the file.
        source: where the value is published, "" for our own.
        note: what else a person should know.
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
        """Whether it is a file of this project, not an official one."""
        return self.container == "safetensors"

    @property
    def readable(self) -> bool:
        """Whether this project can read the file; it has no names for the tensors of some official ones."""
        return self.ours or bool(self.keys)

    @property
    def release(self) -> str:
        """Its name without the seed: NAME_seed1 is the run of NAME again."""
        return re.sub(r"_seed\d+$", "", self.name)

    def json(self) -> str:
        """The entry as the manifest has it."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Catalogue:
    """The entries of a manifest.

    Attributes:
        folder: of the manifest, which an entry's `file` is below.
        entries: in the order of the manifest.
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
        InputError: a file that cannot be read, an unknown or missing key, a key or name given twice, a value of another
            type or form, neither or both of file and url; the entry and the key are named.
    """
    path = Path(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A json object without repeated keys; json itself takes the last of two values."""
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
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"catalogue {path} cannot be read as json ({error}): correct it") from error
    if not isinstance(found, dict) or list(found) != ["checkpoints"] or not isinstance(found["checkpoints"], list):
        raise InputError(f'catalogue {path} must be {{"checkpoints": [entries]}}, got another form: correct it')
    entries: list[Entry] = []
    for number, given in enumerate(found["checkpoints"], start=1):
        entry = make_entry(given, f"catalogue {path}, entry {number}")
        if any(other.name == entry.name for other in entries):
            raise InputError(f"catalogue {path} has the name {entry.name} twice: rename one")
        entries.append(entry)
    return Catalogue(path.parent, tuple(entries))


def make_entry(given: object, where: str) -> Entry:
    """The entry of a json object, checked. Raises InputError, which begins with `where`."""
    if not isinstance(given, dict):
        raise InputError(f"{where} must be a json object, got {type(given).__name__}: correct it")
    if isinstance(given.get("name"), str):
        where = f"{where} ({given['name']})"
    known = [field.name for field in fields(Entry)]
    for key in given:
        if key not in known:
            raise InputError(f"{where} has the key {key!r}, the keys are {', '.join(known)}: take it out")
    for key in known:
        if key not in given:
            raise InputError(f"{where} has no key {key!r}: add it")
        # True is an int in Python, but not a number in a manifest
        if not isinstance(given[key], _TYPES[key]) or isinstance(given[key], bool):
            kinds = " or ".join({"NoneType": "null"}.get(kind.__name__, kind.__name__) for kind in _TYPES[key])
            raise InputError(f"{where}: {key} must be {kinds}, got {given[key]!r}: correct it")
    entry = Entry(**{**given, "value": None if given["value"] is None else _float(given["value"])})
    for fault in _faults(entry):
        raise InputError(f"{where}: {fault}: correct it")
    return entry


def name_fault(name: str) -> str:
    """What is wrong with the name of an entry, "" for nothing."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        return ""
    return f"name must be small letters, digits, _ and -, got {name!r}"


def _faults(entry: Entry) -> Iterator[str]:
    """What is wrong with an entry whose types are right."""
    if fault := name_fault(entry.name):
        yield fault
    for key, allowed in (("task", TASKS), ("access", ACCESS), ("container", CONTAINERS)):
        if getattr(entry, key) not in allowed:
            yield f"{key} must be one of {', '.join(allowed)}, got {getattr(entry, key)!r}"
    yield from _place_faults(entry)
    if not re.fullmatch(r"([0-9a-f]{64})?", entry.sha256):
        yield f"sha256 must be 64 small hexadecimal digits or empty, got {entry.sha256!r}"
    if entry.file is not None and (not entry.sha256 or entry.bytes is None):
        yield f"sha256 and bytes must be given with a file, got {entry.sha256!r} and {entry.bytes}"
    if entry.bytes is not None and entry.bytes < 1:
        yield f"bytes must be 1 or more, got {entry.bytes}"
    if not 0 <= _float(entry.tolerance) < math.inf:
        yield f"tolerance must be a finite number from 0, got {_float(entry.tolerance):g}"
    if entry.value is not None and not math.isfinite(entry.value):
        yield f"value must be a finite number or null, got {json.dumps(entry.value)}"
    if entry.value is not None and not entry.metric:
        yield f"metric must name what was measured, got '' with value {entry.value:g}"
    if entry.metric and not entry.dataset:
        yield f"dataset must name what {entry.metric} was measured on, got ''"


def _place_faults(entry: Entry) -> Iterator[str]:
    """What is wrong with where an entry's file is."""
    if (entry.file is None) == (entry.url is None):
        yield f"exactly one of file and url must be given, got {entry.file!r} and {entry.url!r}"
    if (entry.file is None) == (entry.access == "file"):
        yield f"access must be 'file' with a file and 'direct' or 'page' with a url, got {entry.access!r}"
    if entry.url is not None and not re.fullmatch(r"https?://\S+", entry.url):
        yield f"url must be an address that begins with http:// or https://, got {entry.url!r}"
    if entry.file is not None and not _is_inside(entry.file):
        yield f"file must be a path below checkpoints/, got {entry.file!r}"


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and "\\" not in name and not path.is_absolute() and ".." not in path.parts


def _float(number: float) -> float:
    """As a float; infinite for a whole number that is too large for one."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
