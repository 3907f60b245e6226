"""What a run of --mode found: one result for each cell of a table, kept as json beside the report."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from esbnn_core.checkpoint.catalogue import Catalogue, read_catalogue
from esbnn_core.errors import InputError
from tasks.reproduce.modes.ops import count_row
from tasks.reproduce.tables.datasets import TABLE_DATASETS, evaluate_command
from tasks.reproduce.tables.published import count_decimals
from tasks.reproduce.tables.table import Row, Table


@dataclass(frozen=True)
class Measurement:
    """One measured value, or what is missing for it.

    Attributes:
        value: None until measured.
        source: what was measured.
        missing: what is missing and how to get it, a sentence each.
    """

    value: float | None = None
    source: str = ""
    missing: tuple[str, ...] = ()


Measurements = dict[tuple[str, str, str], Measurement]
"""By (row, dataset, metric)."""


@dataclass(frozen=True)
class CellResult:
    """One cell: a system, measured by one metric on one dataset. A row without cells has one with dataset "".

    Attributes:
        name: of the row.
        system: of the row.
        partner: of the row.
        task: of the row.
        network: of the row.
        options: of the row.
        dataset: by the names of published.csv.
        metric: by the names of published.csv.
        published: as printed, "" for none.
        source: where it is printed.
        ours: None until measured.
        ours_from: what was measured: file, sha256, or run.
        missing: what is missing and how to get it, a sentence each.
        ops: counted single operations, None if not counted, as all counts below.
        ops_as_published: counted by the rule of the source.
        ops_rule: that rule.
        published_ops: in 1e8 by that rule, as printed.
        bops: counted binary multiply-accumulates.
        flops: counted real multiply-accumulates.
        params: counted parameters.
        binary_params: those of 1 bit each.
        words: parameters in words of 32 bits.
        published_params: in 1e6, as printed.
        size: (C, H, W) of the counted input.
        uncounted: why nothing was counted, "" if it was.
        checkpoint: entry of the catalogue, "" for none.
        command: gives `ours`.
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
        """Counted by the source's rule less published, in 1e8."""
        if self.ops_as_published is None or not self.published_ops:
            return None
        return self.ops_as_published / 1e8 - float(self.published_ops)

    @property
    def ops_agree(self) -> bool | None:
        """Whether the count, rounded or cut off to the printed digits, is the published one."""
        if self.ops_as_published is None or not self.published_ops:
            return None
        unit = 0.1 ** count_decimals(self.published_ops)
        # the READMEs cut off as often as they round: 1.6399 is printed as 1.63
        return -unit / 2 <= (self.ops_difference or 0.0) < unit


@dataclass(frozen=True)
class TableResult:
    """A table as it was last run.

    Attributes:
        table: its name.
        title: of the table.
        notes: of the table.
        mode: that wrote it.
        cells: in the order of the rows.
    """

    table: str
    title: str
    notes: list[str]
    mode: str
    cells: list[CellResult]


def make_cells(table: Table, measured: Mapping[tuple[str, str, str], Measurement], data: str) -> list[CellResult]:
    """The cells of a table, counted.

    Args:
        table: with its published values.
        measured: values by (row, dataset, metric).
        data: --data, for the commands.
    """
    results, catalogue = [], read_catalogue()
    for row in table.rows:
        counts, uncounted = _count(row)
        cells = [(dataset, metric) for dataset, metrics in row.cells.items() for metric in metrics] or [("", "")]
        for dataset, metric in cells:
            cell = table.published.get((row.name, dataset, metric))
            value = measured.get((row.name, dataset, metric), Measurement())
            measurable = dataset and not table.counts_only
            results.append(
                CellResult(
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
                    command=_command(row, dataset, table.name, data, catalogue) if measurable else "",
                    **counts,
                )
            )
    return results


def _count(row: Row) -> tuple[dict[str, Any], str]:
    """The counted fields of CellResult, and why there are none."""
    keys = ("ops", "ops_as_published", "bops", "flops", "params", "binary_params", "words")
    try:
        cost = count_row(row)
    except InputError as error:
        return {**dict.fromkeys(keys), "size": []}, str(error)
    return {**{key: getattr(cost, key) for key in keys}, "size": list(cost.size)}, ""


def _command(row: Row, dataset: str, table: str, data: str, catalogue: Catalogue) -> str:
    if row.checkpoint and (entry := catalogue.find(row.checkpoint)).readable:
        return evaluate_command(row.checkpoint, dataset, data, entry.dataset == TABLE_DATASETS[dataset].name)
    words = ["python", "-m", "tasks.reproduce", table, "--mode", "train", "--rows", row.name, "--data", data]
    return shlex.join(words) if row.recipe else ""


def render_json(result: TableResult) -> str:
    """As read_table_result reads it; the differences are added for other readers."""
    head = {key: getattr(result, key) for key in ("table", "title", "notes", "mode")}
    lines = [
        {**asdict(cell), "difference": cell.difference, "ops_difference_1e8": cell.ops_difference}
        for cell in result.cells
    ]
    return json.dumps({**head, "lines": lines}, indent=1, allow_nan=False) + "\n"


def read_table_results(folder: Path, names: Sequence[str]) -> list[TableResult]:
    """Tables of earlier runs in a folder, in the order of names.

    Raises:
        InputError: a file that this version did not write.
    """
    return [read_table_result(folder / f"{name}.json") for name in names if (folder / f"{name}.json").is_file()]


def read_table_result(path: Path) -> TableResult:
    """One table of an earlier run. Raises InputError as read_table_results."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        known = {item.name for item in fields(CellResult)}
        cells = [CellResult(**{key: v for key, v in line.items() if key in known}) for line in body.pop("lines")]
        return TableResult(cells=cells, **body)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{path} was not written by this version ({error}): remove it and run the table again"
        ) from error
