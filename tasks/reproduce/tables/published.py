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
        key: (table, method, variant, dataset, metric).
        value: as printed, "" where nobody could read it.
        ops: operations in 1e8 by the source's own rule, as printed, "" for none.
        params: parameters in millions by the source's own rule, as printed, "" for none.
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
        InputError: a missing or unreadable file, other columns, a cell given twice, a value without a source, or a
            value that is not a number.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            records = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the published values {path} cannot be read ({error}): restore the file") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(
            f"the columns of {path} must be {', '.join(COLUMNS)}, got {', '.join(reader.fieldnames or ())}: restore "
            f"the first line"
        )
    cells: dict[Key, Cell] = {}
    for line, record in enumerate(records, 2):
        where = f"{path} line {line}"
        if None in record or None in record.values():
            raise InputError(f"{where} must have {len(COLUMNS)} fields: put a text with commas in quotes")
        key = (record["table"], record["method"], record["variant"], record["dataset"], record["metric"])
        if key in cells:
            raise InputError(f"{where} repeats the cell {_join(key)}: remove one of the two")
        for column in ("value", "ops_1e8", "params_m"):
            if record[column] and not _is_number(record[column]):
                raise InputError(f"{where}: {column} must be a number or empty, got {record[column]!r}")
        if record["value"] and not record["source"]:
            raise InputError(f"{where} has a value without a source: name where it is printed")
        cells[key] = Cell(key, record["value"], record["ops_1e8"], record["params_m"], record["source"])
    return cells


def find_cell(cells: Mapping[Key, Cell], key: Key, asked_by: str) -> Cell:
    """The cell of that key.

    Args:
        cells: all published cells.
        key: of the one wanted.
        asked_by: file and row that refer to it, for the error.

    Raises:
        InputError: no such cell; names the nearest ones.
    """
    if key in cells:
        return cells[key]
    near = difflib.get_close_matches(_join(key), [_join(other) for other in cells], n=2, cutoff=0.3)
    raise InputError(
        f"{asked_by} refers to the published cell {_join(key)}, which is not in published.csv: "
        f"nearest {', '.join(near) or 'none'}"
    )


def count_decimals(printed: str) -> int:
    """Digits after the point."""
    return len(printed.partition(".")[2])


def _join(key: Key) -> str:
    return "/".join(part or "-" for part in key)


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text)  # not a nan
    except ValueError:
        return False
