"""configs/tables/published.csv: what the papers and their repositories print, cell by cell, each with its source."""

import csv
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esbnn_core.errors import InputError

COLUMNS = ("table", "method", "variant", "dataset", "metric", "value", "ops_1e8", "params_m", "source")
Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Cell:
    """One published number.

    Attributes:
        key: (table, method, variant, dataset, metric). value: as printed, "" where nobody could read it. ops: 1e8
            operations by the source's own rule, params: millions by its own rule, both as printed, "" for none.
        source: where it is printed.
    """

    key: Key
    value: str
    ops: str
    params: str
    source: str


def read_published(path: str | Path) -> dict[Key, Cell]:
    """All cells by their key.

    Raises:
        InputError: a missing or unreadable file, other columns, a cell that is there twice, a value without a source,
            or one that is no number.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the published values {path} cannot be read ({error}): restore the file") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(
            f"{path} has the columns {', '.join(reader.fieldnames or ())}, {', '.join(COLUMNS)} were expected: "
            f"restore the first line"
        )
    cells: dict[Key, Cell] = {}
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{path} line {line} has not {len(COLUMNS)} fields: put a text with commas in quotes")
        key = (row["table"], row["method"], row["variant"], row["dataset"], row["metric"])
        if key in cells:
            raise InputError(f"{path} line {line} has the cell {_name(key)} a second time: remove one")
        for column in ("value", "ops_1e8", "params_m"):
            if row[column] and not _is_number(row[column]):
                raise InputError(f"{path} line {line} has {column} {row[column]!r}, a number or nothing was expected")
        if row["value"] and not row["source"]:
            raise InputError(f"{path} line {line} has a value without a source: name where it is printed")
        cells[key] = Cell(key, row["value"], row["ops_1e8"], row["params_m"], row["source"])
    return cells


def find(cells: Mapping[Key, Cell], key: Key, asked_by: str) -> Cell:
    """The cell of that key. Raises InputError with the nearest ones; asked_by: file and row that want it."""
    if key in cells:
        return cells[key]
    names = {_name(other): other for other in cells}
    near = difflib.get_close_matches(_name(key), names, n=2, cutoff=0.3)
    raise InputError(
        f"{asked_by} refers to the published cell {_name(key)}, which published.csv has not: "
        f"nearest {', '.join(near) or 'none'}"
    )


def decimals(printed: str) -> int:
    """Digits behind the point."""
    return len(printed.partition(".")[2])


def _name(key: Key) -> str:
    return "/".join(part or "-" for part in key)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)  # not a nan
    except ValueError:
        return False
