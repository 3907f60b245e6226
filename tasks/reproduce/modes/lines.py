"""What a run of --mode found: one Line for each cell of a table, kept as json beside the report."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from esbnn_core.checkpoint.catalogue import Catalogue, read_catalogue
from esbnn_core.errors import InputError
from tasks.reproduce.modes.ops import row_cost
from tasks.reproduce.tables.places import PLACES, evaluate_command
from tasks.reproduce.tables.published import decimals
from tasks.reproduce.tables.table import Row, Table


@dataclass(frozen=True)
class Line:
    """One cell: a system, measured by one metric on one dataset; a row without cells has one with dataset "".

    Attributes:
        name, system, partner, task, network, options: of the row. published: as printed, "" for none, with its source.
        ours: None until measured; ours_from: what was measured (file, sha256, or run). missing: what it lacks and how
            to get it, a sentence each. difference: ours - published.
        ops and so on: counted, in single operations and parameters, None where `uncounted` says why not; words:
            parameters in words of 32 bits. published_ops: 1e8, by ops_rule; published_params: 1e6. size: of the input.
        checkpoint: entry of the catalogue, "" for none. command: gives `ours`.
    """

    name: str
    system: str
    partner: str
    task: str
    network: str
    options: dict[str, Any]
    dataset: str
    metric: str
    published: str
    source: str
    ours: float | None
    ours_from: str
    missing: list[str]
    ops: float | None
    ops_as_published: float | None
    ops_rule: str
    published_ops: str
    bops: float | None
    flops: float | None
    params: int | None
    binary_params: int | None
    words: float | None
    published_params: str
    size: list[int]
    uncounted: str
    checkpoint: str
    command: str

    @property
    def difference(self) -> float | None:
        """ours - published."""
        return self.ours - float(self.published) if self.ours is not None and self.published else None

    @property
    def ops_difference(self) -> float | None:
        """Counted by the source's rule less published, 1e8."""
        if self.ops_as_published is None or not self.published_ops:
            return None
        return self.ops_as_published / 1e8 - float(self.published_ops)

    @property
    def ops_agree(self) -> bool | None:
        """Whether the count, rounded or cut off to the printed digits, is the published one."""
        if self.ops_as_published is None or not self.published_ops:
            return None
        unit = 0.1 ** decimals(self.published_ops)
        # the READMEs cut off as often as they round: 1.6399 is printed as 1.63
        return -unit / 2 <= (self.ops_difference or 0.0) < unit


@dataclass(frozen=True)
class Outcome:
    """A table as it was last run.

    Attributes:
        table, title, notes: of the table. mode: that wrote it.
    """

    table: str
    title: str
    notes: list[str]
    mode: str
    lines: list[Line]


@dataclass(frozen=True)
class Measured:
    """One value and of what, or what it lacks, a sentence each."""

    value: float | None = None
    source: str = ""
    missing: tuple[str, ...] = ()


def make_lines(table: Table, measured: dict[tuple[str, str, str], Measured], data: str) -> list[Line]:
    """The lines of a table. measured: by (row, dataset, metric); data: --data, for the commands."""
    found, catalogue = [], read_catalogue()
    for row in table.rows:
        counted, uncounted = _counted(row)
        cells = [(dataset, metric) for dataset, metrics in row.cells.items() for metric in metrics] or [("", "")]
        for dataset, metric in cells:
            cell = table.published.get((row.name, dataset, metric))
            value = measured.get((row.name, dataset, metric), Measured())
            told = dataset and not table.counts_alone
            command = _command(row, dataset, table.name, data, catalogue) if told else ""
            found.append(
                Line(
                    name=row.name,
                    system=row.system,
                    partner=row.partner,
                    task=row.task,
                    network=row.network,
                    options=dict(row.options),
                    dataset=dataset,
                    metric=metric,
                    published=cell.value if cell else "",
                    source=cell.source if cell else "",
                    ours=value.value,
                    ours_from=value.source,
                    missing=list(value.missing),
                    ops_rule=row.ops_rule,
                    published_ops=cell.ops if cell else "",
                    published_params=cell.params if cell else "",
                    uncounted=uncounted,
                    checkpoint=row.checkpoint,
                    command=command,
                    **counted,
                )
            )
    return found


def _counted(row: Row) -> tuple[dict[str, Any], str]:
    """Counted fields of Line, and why there are none."""
    keys = ("ops", "ops_as_published", "bops", "flops", "params", "binary_params", "words")
    try:
        cost = row_cost(row)
    except InputError as error:
        return {**dict.fromkeys(keys), "size": []}, str(error)
    return {**{key: getattr(cost, key) for key in keys}, "size": list(cost.size)}, ""


def _command(row: Row, dataset: str, table: str, data: str, catalogue: Catalogue) -> str:
    if row.checkpoint and (entry := catalogue.find(row.checkpoint)).readable:
        return evaluate_command(row.checkpoint, dataset, data, entry.dataset == PLACES[dataset].name)
    words = ["python", "-m", "tasks.reproduce", table, "--mode", "train", "--rows", row.name, "--data", data]
    return shlex.join(words) if row.recipe else ""


def outcome_json(outcome: Outcome) -> str:
    """As read_outcome reads it, the differences added for other readers."""
    lines = [
        {**asdict(line), "difference": line.difference, "ops_difference_1e8": line.ops_difference}
        for line in outcome.lines
    ]
    return json.dumps({**asdict(outcome), "lines": lines}, indent=1, allow_nan=False) + "\n"


def read_outcomes(folder: Path, names: Sequence[str]) -> list[Outcome]:
    """Tables of earlier runs in that folder, in the order of names.

    Raises:
        InputError: a file that this version did not write.
    """
    return [read_outcome(folder / f"{name}.json") for name in names if (folder / f"{name}.json").is_file()]


def read_outcome(path: Path) -> Outcome:
    """One table of an earlier run. Raises InputError as read_outcomes."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        known = {item.name for item in fields(Line)}
        lines = [Line(**{key: value for key, value in line.items() if key in known}) for line in body.pop("lines")]
        return Outcome(lines=lines, **body)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} is not what this version writes ({error}): remove it and run the table anew"
        ) from error
