"""A table and the proxies as text: markdown for people, csv for programs; lines.py has the json."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.reproduce.modes.lines import Line, Outcome
from tasks.reproduce.modes.proxy_rows import ProxyRow, against_base
from tasks.reproduce.tables.published import decimals

NONE = "-"
MISSING = "not measured"


@dataclass(frozen=True)
class Grid:
    """A table as text: its head, its lines, and what stands below it."""

    head: tuple[str, ...]
    body: list[tuple[str, ...]]
    below: list[str]


def cell_grid(outcome: Outcome) -> Grid | None:
    """Published against ours, one line a system and dataset; None for a table of operations alone."""
    head: tuple[str, ...] = (
        "system",
        "data",
        "metric",
        "published",
        "ours",
        "difference",
        "OPs (1e8)",
        "parameters (M)",
    )
    head += ("checkpoint",)
    body: list[tuple[str, ...]] = []
    sources: list[str] = []
    lacking: dict[str, list[str]] = {}
    told: list[str] = []
    for group in _groups(outcome.lines):
        first = group[0]
        if not first.dataset or outcome.table == "ops":
            continue
        for line in group:
            if line.published and line.source not in sources:
                sources.append(line.source)
        marks = sorted({sources.index(line.source) + 1 for line in group if line.published})
        published = _joined([line.published or NONE for line in group])
        body.append(
            (
                first.system,
                first.dataset,
                " / ".join(line.metric for line in group),
                published + "".join(f" [{mark}]" for mark in marks),
                _joined([NONE if line.ours is None else _number(line.ours, line.published) for line in group]),
                _joined([NONE if line.difference is None else _signed(line.difference, line) for line in group]),
                NONE if first.ops is None else f"{first.ops / 1e8:.4f}",
                NONE if first.params is None else f"{first.params / 1e6:.3f}",
                first.checkpoint or NONE,
            )
        )
        for line in group:
            for sentence in line.missing:
                # its data says itself which it is
                names = lacking.setdefault(sentence, [])
                if line.system not in names:
                    names.append(line.system)
            if line.ours is not None and (entry := f"{line.system} on {line.dataset}: {line.ours_from}") not in told:
                told.append(entry)
    if not body:
        return None
    # "; ": names have commas of their own
    below = [f"[{number}] {source}" for number, source in enumerate(sources, 1)] + told
    return Grid(head, body, below + [f"{MISSING} ({'; '.join(names)}): {why}" for why, names in lacking.items()])


def cost_grid(outcome: Outcome) -> Grid:
    """Counted operations and parameters against published ones, one line a system."""
    head: tuple[str, ...] = (
        "system",
        "input",
        "BOPs (G)",
        "FLOPs (1e8)",
        "OPs (1e8)",
        "by the source's rule",
        "published OPs (1e8)",
    )
    head += ("difference", "parameters (M)", "1-bit (M)", "in 32-bit words (M)", "published (M)")
    body: list[tuple[str, ...]] = []
    below: list[str] = []
    for line in _systems(outcome.lines):
        if line.ops is None or line.ops_as_published is None or line.params is None:
            body.append((line.system, *[NONE] * (len(head) - 1)))
            below.append(f"not counted: {line.system}: {line.uncounted}")
            continue
        difference = NONE if line.ops_difference is None else f"{line.ops_difference:+.4f}"
        if line.ops_agree is not None:
            difference += " (agrees)" if line.ops_agree else " (differs)"
        body.append(
            (
                line.system,
                "x".join(map(str, line.size)),
                f"{(line.bops or 0) / 1e9:.4f}",
                f"{(line.flops or 0) / 1e8:.4f}",
                f"{line.ops / 1e8:.4f}",
                NONE if line.ops_rule == "papers" else f"{line.ops_as_published / 1e8:.4f} ({line.ops_rule})",
                line.published_ops or NONE,
                difference,
                f"{line.params / 1e6:.3f}",
                f"{(line.binary_params or 0) / 1e6:.3f}",
                f"{(line.words or 0) / 1e6:.3f}",
                line.published_params or NONE,
            )
        )
    if any(line.ops_agree is not None for line in outcome.lines):
        below.append("agrees: rounded or cut off to the printed digits the count is the published figure")
    return Grid(head, body, below)


def proxy_grid(rows: Sequence[ProxyRow]) -> Grid:
    """Proxy comparisons, which have no published column."""
    head: tuple[str, ...] = (
        "system",
        "variant",
        "data",
        "metric",
        "mean",
        "95 % interval",
        "against base",
        "seeds",
        "OPs (M)",
    )
    head += ("parameters", "epochs", "minutes in all")
    body: list[tuple[str, ...]] = []
    for row in rows:
        apart = against_base(row, rows)
        body.append(
            (
                row.system,
                row.variant,
                row.dataset,
                row.metric_name,
                f"{row.mean:.2f}",
                _width(row.half_width) or NONE,
                f"{apart[0]:+.2f} {_width(apart[1])}".strip() if apart else NONE,
                " ".join(f"{seed}: {value:.2f}" for seed, value in zip(row.seeds, row.values, strict=True)),
                f"{row.ops / 1e6:.3f}",
                f"{row.params:,}",
                f"{row.epochs:g}",
                f"{row.seconds / 60:.1f}",
            )
        )
    below = [f"{row.system} {row.variant}: {row.network} {row.options}, {row.command}" for row in rows]
    return Grid(head, body, below)


def markdown(outcome: Outcome) -> str:
    """A whole table."""
    parts = [f"# {outcome.title}", *(f"- {note}" for note in outcome.notes), ""]
    cells = cell_grid(outcome)
    if cells is not None:
        parts += [grid_markdown(cells), "## Operations and parameters", ""]
    parts.append(grid_markdown(cost_grid(outcome)))
    commands = list(dict.fromkeys(f"- {line.system}: `{line.command}`" for line in outcome.lines if line.command))
    if commands:
        parts += ["## Commands", "", *commands, ""]
    return "\n".join(parts)


PROXY_TITLE = "Proxy comparisons"
PROXY_NOTE = (
    "Small networks trained for a short time on the data named, at equal operations. These are other networks and "
    "other data than the papers', and compare with no published value."
)


def proxy_markdown(rows: Sequence[ProxyRow]) -> str:
    """The proxies under their own heading."""
    return "\n".join([f"# {PROXY_TITLE}", "", PROXY_NOTE, "", grid_markdown(proxy_grid(rows))])


def grid_markdown(grid: Grid) -> str:
    """Aligned, with what stands below as a list."""
    lines = [grid.head, *grid.body]
    lines = [tuple(cell.replace("|", "\\|") for cell in line) for line in lines]
    widths = [max(len(line[place]) for line in lines) for place in range(len(grid.head))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    below = [f"- {line}" for line in grid.below]
    return "\n".join([*text, "", *below, *([""] if below else [])])


def outcome_csv(outcome: Outcome) -> str:
    """One line a cell, in the units that the heads name."""
    return _csv([_record(outcome.table, line) for line in outcome.lines])


def proxy_csv(rows: Sequence[ProxyRow]) -> str:
    """One line a network and seed."""
    keys = ("system", "variant", "network", "dataset", "metric")
    records = [
        {
            **{key: getattr(row, key) for key in keys},
            "seed": seed,
            "value": value,
            "mean": row.mean,
            "half_width": "" if math.isnan(row.half_width) else row.half_width,
            "ops": row.ops,
            "params": row.params,
            "epochs": row.epochs,
            "seconds_of_all_seeds": row.seconds,
            "command": row.command,
        }
        for row in rows
        for seed, value in zip(row.seeds, row.values, strict=True)
    ]
    return _csv(records)


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in record.items()} for record in records)
    return text.getvalue()


def _record(table: str, line: Line) -> dict[str, Any]:
    def scaled(value: float | None, unit: float) -> float | None:
        return None if value is None else value / unit

    return {
        "table": table,
        **{key: getattr(line, key) for key in ("name", "system", "dataset", "metric", "published", "source")},
        **{key: getattr(line, key) for key in ("ours", "difference", "ours_from")},
        "missing": "; ".join(line.missing),
        "ops_1e8": scaled(line.ops, 1e8),
        "ops_rule": line.ops_rule,
        "ops_by_rule_1e8": scaled(line.ops_as_published, 1e8),
        "published_ops_1e8": line.published_ops,
        "ops_difference_1e8": line.ops_difference,
        "bops_1e9": scaled(line.bops, 1e9),
        "flops_1e8": scaled(line.flops, 1e8),
        "params": line.params,
        "binary_params": line.binary_params,
        "params_in_32bit_words_m": scaled(line.words, 1e6),
        "published_params_m": line.published_params,
        "checkpoint": line.checkpoint,
        "command": line.command,
    }


def _groups(lines: Iterable[Line]) -> list[list[Line]]:
    """Lines of one row and dataset together."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.name, line.dataset), []).append(line)
    return list(found.values())


def _systems(lines: Iterable[Line]) -> list[Line]:
    """The first line of every row, with the first published figures of the row."""
    return [group[0] for group in {line.name: [line] for line in reversed(list(lines))}.values()][::-1]


def _width(half: float) -> str:
    return "" if math.isnan(half) else f"± {half:.2f}"


def _joined(values: Sequence[str]) -> str:
    return NONE if set(values) == {NONE} else " / ".join(values)


def _number(value: float, published: str) -> str:
    """At least as many digits as were published."""
    return f"{value:.{max(2, decimals(published))}f}"


def _signed(value: float, line: Line) -> str:
    return f"{value:+.{max(2, decimals(line.published))}f}"
