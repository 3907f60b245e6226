"""A table and the proxies as text: Markdown for people, csv for programs. The json is in modes/results.py."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.modes.results import CellResult, TableResult
from tasks.reproduce.report.grids import Grid, make_cell_grid, make_cost_grid, make_proxy_grid
from tasks.reproduce.report.markdown import render_markdown_table

PROXY_TITLE = "Proxy comparisons"
PROXY_NOTE = (
    "Small networks trained for a short time on the data named, at equal operations. These are other networks and "
    "other data than the papers', and compare with no published value."
)


def render_markdown(result: TableResult) -> str:
    """A whole table."""
    parts = [f"# {result.title}", *(f"- {note}" for note in result.notes), ""]
    cells = make_cell_grid(result)
    if cells is not None:
        parts += [render_grid(cells), "## Operations and parameters", ""]
    parts.append(render_grid(make_cost_grid(result)))
    commands = list(dict.fromkeys(f"- {cell.system}: `{cell.command}`" for cell in result.cells if cell.command))
    if commands:
        parts += ["## Commands", "", *commands, ""]
    return "\n".join(parts)


def render_proxy_markdown(results: Sequence[ProxyResult]) -> str:
    """The proxies under their own heading."""
    return "\n".join([f"# {PROXY_TITLE}", "", PROXY_NOTE, "", render_grid(make_proxy_grid(results))])


def render_grid(grid: Grid) -> str:
    """An aligned table with its footnotes as a list."""
    below = [f"- {line}" for line in grid.below]
    return "\n".join([render_markdown_table(grid.head, grid.body, aligned=True), "", *below, *([""] if below else [])])


def render_csv(result: TableResult) -> str:
    """One line a cell, in the units that the heads name."""
    return _write_csv([_record(result.table, cell) for cell in result.cells])


def render_proxy_csv(results: Sequence[ProxyResult]) -> str:
    """One line a network and seed."""
    keys = ("system", "variant", "network", "dataset", "metric")
    records = [
        {
            **{key: getattr(result, key) for key in keys},
            "seed": seed,
            "value": value,
            "mean": result.mean,
            "half_width": "" if math.isnan(result.half_width) else result.half_width,
            "ops": result.ops,
            "params": result.params,
            "epochs": result.epochs,
            "seconds_of_all_seeds": result.seconds,
            "command": result.command,
        }
        for result in results
        for seed, value in zip(result.seeds, result.values, strict=True)
    ]
    return _write_csv(records)


def _write_csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in record.items()} for record in records)
    return text.getvalue()


def _record(table: str, cell: CellResult) -> dict[str, Any]:
    def scale(value: float | None, unit: float) -> float | None:
        return None if value is None else value / unit

    return {
        "table": table,
        **{key: getattr(cell, key) for key in ("name", "system", "dataset", "metric", "published", "source")},
        **{key: getattr(cell, key) for key in ("ours", "difference", "ours_from")},
        "missing": "; ".join(cell.missing),
        "ops_1e8": scale(cell.ops, 1e8),
        "ops_rule": cell.ops_rule,
        "ops_by_rule_1e8": scale(cell.ops_as_published, 1e8),
        "published_ops_1e8": cell.published_ops,
        "ops_difference_1e8": cell.ops_difference,
        "bops_1e9": scale(cell.bops, 1e9),
        "flops_1e8": scale(cell.flops, 1e8),
        "params": cell.params,
        "binary_params": cell.binary_params,
        "params_in_32bit_words_m": scale(cell.words, 1e6),
        "published_params_m": cell.published_params,
        "checkpoint": cell.checkpoint,
        "command": cell.command,
    }
