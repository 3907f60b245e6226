"""Rewrites the tables and pictures of docs/reports/evidence.md from the proxies' results in benchmarks/results/proxy.

python -m benchmarks.evidence [OUT/proxy]    (OUT: the --out of `tasks.reproduce --mode proxy`, to take results over)

A table stands between `<!-- table: SYSTEM -->` and `<!-- end -->`; the text around it is written by hand.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.curves import reasons
from benchmarks.report import marked, table
from benchmarks.timing import RESULTS
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, write_atomically
from tasks.reproduce.modes.proxy import read_proxy
from tasks.reproduce.modes.proxy_rows import ProxyRow
from tasks.reproduce.report.pictures import ablation, proxies
from tasks.reproduce.report.writing import proxy_grid
from tasks.reproduce.tables.table import SYSTEMS

KEPT = RESULTS / "proxy"
DOCUMENT = ROOT / "docs" / "reports" / "evidence.md"
REASONS = ("rates", "spread", "width")
"""Why a comparison came out as it did: one network, its recipe varied."""
COLUMNS = ("variant", "mean", "95 % interval", "against base", "seeds", "OPs (M)", "parameters", "epochs")


def system_table(rows: Sequence[ProxyRow]) -> str:
    """The columns of one system's comparison that differ from row to row."""
    grid = proxy_grid(rows)
    places = [grid.head.index(name) for name in COLUMNS]
    metric = f"{rows[0].metric_name}, {rows[0].dataset}"
    head = [f"mean ({metric})" if name == "mean" else name for name in COLUMNS]
    return table(head, [[line[place] for place in places] for line in grid.body])


def rewrite(text: str, rows: Sequence[ProxyRow]) -> str:
    """The document with every marked table made anew; that of a system without results stays as it is."""

    def render(name: str) -> str | None:
        own = [row for row in rows if row.system == name]
        return system_table(own) if own else None

    return marked(text, render)


def take_over(out: Path, kept: Path) -> None:
    """Copy the results of a proxy folder, all of them readable, or raise InputError and copy none."""
    if not read_proxy(out):
        raise InputError(f"{out} holds no SYSTEM.json of a proxy: give the folder proxy below --out")
    for path in (out / f"{system}.json" for system in SYSTEMS):
        if path.exists():
            write_atomically(kept / path.name, path.read_bytes())


def main() -> None:
    """Take results over, rewrite docs/reports/evidence.md and draw its pictures in docs/img."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="folder with the proxies' SYSTEM.json")
    out = parser.parse_args().out
    if out is not None:
        take_over(out, KEPT)
    rows = read_proxy(KEPT)
    write_atomically(DOCUMENT, rewrite(DOCUMENT.read_text(), rows).encode())
    images = ROOT / "docs" / "img"
    compared = [row for row in rows if row.system not in REASONS]
    write_atomically(images / "proxies.png", proxies(compared).data)
    write_atomically(images / "proxy_reasons.png", reasons(rows))
    if any(row.system == "ablation" for row in rows):
        write_atomically(images / "proxy_ablation.png", ablation(rows).data)
    print(DOCUMENT)
