"""Shared pieces of the tests of tasks.reproduce: tables, proxies made by hand, what a browser sees of a page."""

import base64
from functools import cache
from html.parser import HTMLParser
from typing import Any

from tasks.reproduce.modes.ops import RowCost
from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.modes.results import Measurement, TableResult, make_cells
from tasks.reproduce.tables.published import read_published
from tasks.reproduce.tables.table import TABLES, Table, read_table

COST = RowCost(88e6, 88e6, 4.8e9, 13e6, 31_000_000, 28_000_000, (3, 4, 4))
"""Of every row where a test does not count: test_tables.py counts the real ones."""


@cache
def table(name: str) -> Table:
    return read_table(name, read_published(TABLES / "published.csv"))


def outcome(name: str, measured: dict[tuple[str, str, str], Measurement] | None = None) -> TableResult:
    one = table(name)
    return TableResult(name, one.title, list(one.notes), "ops", make_cells(one, measured or {}, "data"))


def proxy(system: str, variant: str, values: list[float], **changes: Any) -> ProxyResult:
    given: dict[str, Any] = {"dataset": "fashion_mnist", "metric": "top1", "ops": 5e6, "params": 80_000}
    given |= {"epochs": 20.0, "seconds": 90.0, "command": f"python -m train {system} {variant}"} | changes
    return ProxyResult(system, variant, "a_network", {}, seeds=list(range(len(values))), values=values, **given)


PROXIES = [
    proxy("reactnet", "base", [80.12, 80.3, 79.9]),
    proxy("reactnet", "es", [81.17, 81.0, 81.4]),
    proxy("bidet", "base", [31.41], dataset="VOC2007", metric="map_11point"),
    *(proxy("ablation", f"tau={t} g={g}", [70.0 + t, 71.0 + g]) for t in (1, 2, 4) for g in (1, 2)),
    proxy("ablation", "tau=2 g=1 spread=0.5", [73.77]),
]


class Parts(HTMLParser):
    """What a browser would fetch, the text by section, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images: list[bytes] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self.section = ""
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            value = given.get(name)
            if value is None or (tag == "a" and value.startswith("#")):
                continue
            if tag == "img" and value.startswith("data:image/png;base64,"):
                self.images.append(base64.b64decode(value.partition(",")[2], validate=True))
            else:
                self.fetched.append(value)
        if tag == "section":
            self.section = given["id"] or ""
            self.text[self.section] = ""
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.text[self.section] += data
