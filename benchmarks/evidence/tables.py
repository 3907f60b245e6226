"""Rewrites the tables and pictures of docs/reports/evidence*.md, and the README's picture of what ES is worth, from
the proxies' results in benchmarks/results/proxy.

python -m benchmarks.evidence [OUT/proxy]    (OUT: the --out of `tasks.reproduce --mode proxy`, to copy its results)

A table is between `<!-- table: SYSTEM -->` and `<!-- end -->`; the text around it is written by hand. runs.csv beside
the json has a row for each run.
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.curves import draw_reasons
from benchmarks.evidence.gains import draw_gains, render_gains
from benchmarks.evidence.study import draw_beside, draw_study
from benchmarks.report import marked
from benchmarks.timing import RESULTS
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, write_atomically
from tasks.reproduce.modes.proxy import read_proxy_results
from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.report.grids import make_proxy_grid
from tasks.reproduce.report.markdown import render_markdown_table
from tasks.reproduce.report.pictures import draw_ablation, draw_proxies
from tasks.reproduce.tables.table import SYSTEMS, read_tables

KEPT = RESULTS / "proxy"
PAGES = ("evidence.md", "evidence-depth.md", "evidence-recipes.md", "evidence-families.md", "evidence-narrow.md")
DOCUMENTS = tuple(ROOT / "docs" / "reports" / name for name in PAGES)
REASONS = ("rates", "spread", "width")
"""Comparisons that explain the others: one network, its recipe varied."""
COLUMNS = ("variant", "mean", "95 % interval", "against base", "seeds", "OPs (M)", "parameters", "epochs")


def render_system(results: Sequence[ProxyResult]) -> str:
    """A table of one system's comparison, with the columns that differ from result to result."""
    grid = make_proxy_grid(results)
    places = [grid.head.index(name) for name in COLUMNS]
    metric = f"{results[0].metric_name}, {results[0].dataset}"
    head = [f"mean ({metric})" if name == "mean" else name for name in COLUMNS]
    return render_markdown_table(head, [[line[place] for place in places] for line in grid.body])


def rewrite(text: str, results: Sequence[ProxyResult]) -> str:
    """The document with every marked table rewritten; the table of a system without results stays as it is.

    `gains` names no system: it is the table of all that decide.
    """

    def render(name: str) -> str | None:
        if name == "gains":
            return render_gains(results)
        of_system = [result for result in results if result.system == name]
        return render_system(of_system) if of_system else None

    return marked(text, render)


def list_runs(results: Sequence[ProxyResult]) -> str:
    """A csv of all runs: what was trained, the seed, and its value."""
    rows = io.StringIO()
    out = csv.writer(rows, lineterminator="\n")
    out.writerow(("system", "variant", "network", "options", "dataset", "epochs", "metric", "seed", "value"))
    for r in results:
        options = json.dumps(r.options, sort_keys=True)
        for seed, value in zip(r.seeds, r.values, strict=True):
            out.writerow((r.system, r.variant, r.network, options, r.dataset, r.epochs, r.metric, seed, value))
    return rows.getvalue()


def copy_results(out: Path, kept: Path) -> None:
    """Copy the results of a proxy folder, or raise InputError and copy none if one of them cannot be read."""
    if not read_proxy_results(out):
        raise InputError(f"{out} must hold the SYSTEM.json of a proxy, got none: give the folder proxy below --out")
    for path in (out / f"{system}.json" for system in SYSTEMS):
        if path.exists():
            write_atomically(kept / path.name, path.read_bytes())


def main() -> None:
    """Copy results, rewrite the documents' tables and runs.csv, and draw the pictures in docs/img."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="folder with the proxies' SYSTEM.json")
    out = parser.parse_args().out
    if out is not None:
        copy_results(out, KEPT)
    results = read_proxy_results(KEPT)
    for document in DOCUMENTS:
        write_atomically(document, rewrite(document.read_text(), results).encode())
    write_atomically(KEPT / "runs.csv", list_runs(results).encode())
    images = ROOT / "docs" / "img"
    (study,) = read_tables(["study"])
    compared = [result for result in results if result.system not in (*REASONS, *study.proxy)]
    write_atomically(images / "proxies.png", draw_proxies(compared).data)
    write_atomically(images / "proxy_reasons.png", draw_reasons(results))
    if any(result.system == "ablation" for result in results):
        write_atomically(images / "proxy_ablation.png", draw_ablation(results).data)
    write_atomically(images / "gains.png", draw_gains(results))
    write_atomically(images / "study.png", draw_study(results))
    write_atomically(images / "study_beside.png", draw_beside(results))
    print(*DOCUMENTS)
