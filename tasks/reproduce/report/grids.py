"""What a table and the proxies show to people: heads, lines and footnotes, before they become Markdown or HTML."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.reproduce.modes.proxy_results import ProxyResult, compare_with_base
from tasks.reproduce.modes.results import CellResult, TableResult
from tasks.reproduce.tables.published import count_decimals

NONE = "-"
MISSING = "not measured"


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Attributes:
        head: of the columns.
        body: its lines.
        below: footnotes, a sentence each.
    """

    head: tuple[str, ...]
    body: list[tuple[str, ...]]
    below: list[str]


def make_cell_grid(result: TableResult) -> Grid | None:
    """Published against ours, one line a system and dataset; None for a table of operations only."""
    head = (
        *("system", "data", "metric", "published", "ours", "difference"),
        *("OPs (1e8)", "parameters (M)", "checkpoint"),
    )
    body: list[tuple[str, ...]] = []
    sources: list[str] = []
    missing: dict[str, list[str]] = {}
    measured: list[str] = []
    for group in _group_cells(result.cells):
        first = group[0]
        if not first.dataset or result.table == "ops":
            continue
        for cell in group:
            if cell.published and cell.source not in sources:
                sources.append(cell.source)
        marks = sorted({sources.index(cell.source) + 1 for cell in group if cell.published})
        published = _join([cell.published or NONE for cell in group])
        body.append(
            (
                first.system,
                first.dataset,
                " / ".join(cell.metric for cell in group),
                published + "".join(f" [{mark}]" for mark in marks),
                _join([NONE if cell.ours is None else _format_value(cell.ours, cell.published) for cell in group]),
                _join([NONE if cell.difference is None else _format_signed(cell.difference, cell) for cell in group]),
                NONE if first.ops is None else f"{first.ops / 1e8:.4f}",
                NONE if first.params is None else f"{first.params / 1e6:.3f}",
                first.checkpoint or NONE,
            )
        )
        for cell in group:
            for sentence in cell.missing:
                # one footnote for all systems that lack the same; the sentence names the data
                names = missing.setdefault(sentence, [])
                if cell.system not in names:
                    names.append(cell.system)
            entry = f"{cell.system} on {cell.dataset}: {cell.ours_from}"
            if cell.ours is not None and entry not in measured:
                measured.append(entry)
    if not body:
        return None
    below = [f"[{number}] {source}" for number, source in enumerate(sources, 1)] + measured
    # "; " because names contain commas
    return Grid(head, body, below + [f"{MISSING} ({'; '.join(names)}): {why}" for why, names in missing.items()])


def make_cost_grid(result: TableResult) -> Grid:
    """Counted operations and parameters against published ones, one line a system."""
    head = (
        *("system", "input", "BOPs (G)", "FLOPs (1e8)", "OPs (1e8)", "by the source's rule", "published OPs (1e8)"),
        *("difference", "parameters (M)", "1-bit (M)", "in 32-bit words (M)", "published (M)"),
    )
    body: list[tuple[str, ...]] = []
    below: list[str] = []
    for cell in _first_cells(result.cells):
        if cell.ops is None or cell.ops_as_published is None or cell.params is None:
            body.append((cell.system, *[NONE] * (len(head) - 1)))
            below.append(f"not counted: {cell.system}: {cell.uncounted}")
            continue
        difference = NONE if cell.ops_difference is None else f"{cell.ops_difference:+.4f}"
        if cell.ops_agree is not None:
            difference += " (agrees)" if cell.ops_agree else " (differs)"
        body.append(
            (
                cell.system,
                "x".join(map(str, cell.size)),
                f"{(cell.bops or 0) / 1e9:.4f}",
                f"{(cell.flops or 0) / 1e8:.4f}",
                f"{cell.ops / 1e8:.4f}",
                NONE if cell.ops_rule == "papers" else f"{cell.ops_as_published / 1e8:.4f} ({cell.ops_rule})",
                cell.published_ops or NONE,
                difference,
                f"{cell.params / 1e6:.3f}",
                f"{(cell.binary_params or 0) / 1e6:.3f}",
                f"{(cell.words or 0) / 1e6:.3f}",
                cell.published_params or NONE,
            )
        )
    if any(cell.ops_agree is not None for cell in result.cells):
        below.append("agrees: the count, rounded or cut off to the printed digits, is the published figure")
    return Grid(head, body, below)


def make_proxy_grid(results: Sequence[ProxyResult]) -> Grid:
    """Proxy comparisons, which have no published column."""
    head = (
        *("system", "variant", "data", "metric", "mean", "95 % interval", "against base", "seeds"),
        *("OPs (M)", "parameters", "epochs", "minutes in all"),
    )
    body: list[tuple[str, ...]] = []
    for result in results:
        difference = compare_with_base(result, results)
        body.append(
            (
                result.system,
                result.variant,
                result.dataset,
                result.metric_name,
                f"{result.mean:.2f}",
                _format_width(result.half_width) or NONE,
                f"{difference[0]:+.2f} {_format_width(difference[1])}".strip() if difference else NONE,
                " ".join(f"{seed}: {value:.2f}" for seed, value in zip(result.seeds, result.values, strict=True)),
                f"{result.ops / 1e6:.3f}",
                f"{result.params:,}",
                f"{result.epochs:g}",
                f"{result.seconds / 60:.1f}",
            )
        )
    below = [
        f"{result.system} {result.variant}: {result.network} {result.options}, {result.command}" for result in results
    ]
    return Grid(head, body, below)


def _group_cells(cells: Iterable[CellResult]) -> list[list[CellResult]]:
    """Cells of one row and dataset together."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.name, cell.dataset), []).append(cell)
    return list(groups.values())


def _first_cells(cells: Iterable[CellResult]) -> list[CellResult]:
    """The first cell of every row, which has the published operations and parameters."""
    return list({cell.name: cell for cell in reversed(list(cells))}.values())[::-1]


def _format_width(half: float) -> str:
    return "" if math.isnan(half) else f"± {half:.2f}"


def _join(values: Sequence[str]) -> str:
    return NONE if set(values) == {NONE} else " / ".join(values)


def _format_value(value: float, published: str) -> str:
    """With as many digits as were published, at least two."""
    return f"{value:.{max(2, count_decimals(published))}f}"


def _format_signed(value: float, cell: CellResult) -> str:
    return f"{value:+.{max(2, count_decimals(cell.published))}f}"
