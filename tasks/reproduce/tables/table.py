"""configs/tables/NAME.yaml: which systems a table has, read strictly, every published cell looked up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esbnn_core.checkpoint.catalogue import TASKS
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT
from tasks.reproduce.tables.published import Cell, Key, find

TABLES = ROOT / "configs" / "tables"
NAMES = ("figure1", "imagenet", "cifar10", "voc", "sr", "ablation", "ops")
SYSTEMS = ("reactnet", "bnext", "binaryvit", "bidet", "bidiffsr", "recu", "ablation", "spread", "rates", "width")
OPS_RULES = ("papers", "int8", "attention")
"""papers: BOPs / 64 + FLOPs. int8: FLOPs / 8, BNext's README. attention: with the products of attention as well."""
METRICS = {
    "ImageNet-1k": ("top1", "top5"),
    "CIFAR-10": ("top1",),
    "VOC07 test": ("mAP",),
    **dict.fromkeys(("Set5", "B100", "Urban100", "Manga109"), ("PSNR_dB", "SSIM", "LPIPS")),
}
"""Data of the tables and what is measured on it, by the names of published.csv."""


@dataclass(frozen=True)
class Row:
    """One system of a table.

    Attributes:
        name: unique in the table. system: as people read it. task: of TASKS.
        network, options: for create_model, classification alone. recipe: configs, laid behind one another; the network
            of a detection or super-resolution row is that of its recipe. size: of the input that is counted, None for
            the network's own.
        cells: dataset -> metrics that are to be measured. published: (table, method, variant) of published.csv, None
            where nothing is published. ops_rule: of OPS_RULES, how the source counts.
        checkpoint: name of an entry of checkpoints/manifest.json, or "".
        before: recipes that run first, one after another, each a list of configs. words: further words of the command.
            run: folder of the run where it is not the recipe's own. trainer: config of the machine that the recipe is
            written for.
        partner: row of the same table that is this one with ES, or "".
    """

    name: str
    system: str
    task: str
    network: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: tuple[str, ...] = ()
    size: tuple[int, int, int] | None = None
    cells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: tuple[str, str, str] | None = None
    ops_rule: str = "papers"
    checkpoint: str = ""
    before: tuple[tuple[str, ...], ...] = ()
    words: tuple[str, ...] = ()
    run: str = ""
    trainer: str = "configs/trainer/ddp8.yaml"
    partner: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its rows, the published cells that they refer to by row and (dataset, metric), its proxy systems.

    Attributes:
        name: of NAMES. title, notes: for people. proxy: systems that --mode proxy trains small.
        published: (row, dataset, metric) -> cell.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    proxy: tuple[str, ...]
    rows: tuple[Row, ...]
    published: Mapping[tuple[str, str, str], Cell]

    @property
    def counts_alone(self) -> bool:
        """Whether it is about operations, with nothing to evaluate or train."""
        return self.name == "ops"

    def row(self, name: str) -> Row:
        """The row of that name. Raises InputError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"table {self.name} has no row {name!r}: its rows are {', '.join(r.name for r in self.rows)}")


_TEXT = {"name", "system", "task", "network", "ops_rule", "checkpoint", "run", "trainer", "partner"}
_TEXTS = {"recipe", "words"}
_KEYS = {*_TEXT, *_TEXTS, "options", "size", "cells", "published", "before"}


def read_table(name: str, published: Mapping[Key, Cell], folder: Path = TABLES) -> Table:
    """Read and check one table.

    Raises:
        InputError: a file that is missing or no YAML, an unknown or missing key, a value of a wrong type, a name twice,
            a config or partner that does not exist, a published cell that published.csv has not.
    """
    path = folder / f"{name}.yaml"
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"table {path} cannot be read ({error}): restore the file") from error
    except yaml.YAMLError as error:
        raise InputError(f"table {path} is no YAML ({' '.join(str(error).split())}): correct that place") from error
    if not isinstance(body, dict):
        raise InputError(f"table {path} holds no mapping: title, notes, proxy, defaults and rows were expected")
    _known(body, {"title", "notes", "proxy", "defaults", "rows"}, str(path))
    title, notes, proxy = body.get("title"), body.get("notes", []), body.get("proxy", [])
    if not isinstance(title, str) or not _texts(notes) or not _texts(proxy):
        raise InputError(f"table {path} has a wrong head: title is a text, notes and proxy are lists of texts")
    for system in proxy:
        if system not in SYSTEMS:
            raise InputError(f"{path} has the proxy system {system!r}, one of {', '.join(SYSTEMS)} was expected")
    defaults, entries = body.get("defaults", {}), body.get("rows")
    if not isinstance(defaults, dict) or not isinstance(entries, list) or not entries:
        raise InputError(f"table {path} needs rows, a list of mappings, and defaults, if any, as a mapping")
    rows = [_row(entry, defaults, f"{path} row {place}") for place, entry in enumerate(entries, 1)]
    names = [row.name for row in rows]
    cells: dict[tuple[str, str, str], Cell] = {}
    for row in rows:
        where = f"{path} row {row.name}"
        if names.count(row.name) > 1:
            raise InputError(f"{path} has the row {row.name} twice: give each its own name")
        if row.partner and (row.partner not in names or row.partner == row.name):
            raise InputError(f"{where} has the partner {row.partner!r}: name another row of the table")
        for dataset, metrics in row.cells.items() if row.published else ():
            for metric in metrics:
                cells[row.name, dataset, metric] = find(published, (*row.published, dataset, metric), where)
    return Table(name, title, tuple(notes), tuple(proxy), tuple(rows), cells)


def _row(entry: Any, defaults: dict[str, Any], where: str) -> Row:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no mapping of keys: {', '.join(sorted(_KEYS))}")
    _known(defaults, _KEYS - {"name"}, f"{where} (defaults)")
    _known(entry, _KEYS, where)
    given = {**defaults, **entry}
    where = f"{where} ({given.get('name', 'without a name')})"
    for key in ("name", "system", "task"):
        if not given.get(key):
            raise InputError(f"{where} lacks {key}: add it")
    for key in _TEXT & given.keys():
        if not isinstance(given[key], str):
            raise InputError(f"{where} has {key} {given[key]!r}, a text was expected")
    for key in _TEXTS & given.keys():
        if not _texts(given[key]):
            raise InputError(f"{where} has {key} {given[key]!r}, a list of texts was expected")
        given[key] = tuple(given[key])
    _check_choices(given, where)
    before = given.get("before", [])
    if not isinstance(before, list) or not all(_texts(stage) and stage for stage in before):
        raise InputError(f"{where} has before {before!r}, a list of lists of configs was expected")
    given["before"] = tuple(tuple(stage) for stage in before)
    for config in (*given.get("recipe", ()), *(c for stage in before for c in stage), given.get("trainer", "")):
        if config and not (ROOT / config).is_file():
            raise InputError(f"{where} names the config {config}, which does not exist: correct the path")
    return Row(**given)


def _check_choices(given: dict[str, Any], where: str) -> None:
    """Task, network, size, cells and published of one row, turned into what Row has."""
    for key, choices in (("task", TASKS), ("ops_rule", OPS_RULES)):
        if given.get(key, choices[0]) not in choices:
            raise InputError(f"{where} has {key} {given[key]!r}, one of {', '.join(choices)} was expected")
    options = given.get("options", {})
    if not isinstance(options, dict):
        raise InputError(f"{where} has options {options!r}, a mapping was expected")
    classifier = given["task"] == "classification"
    if classifier != bool(given.get("network")) or (not classifier and (options or not given.get("recipe"))):
        raise InputError(
            f"{where} does not say its network as its task does: classification has network and options, the others "
            f"a recipe"
        )
    size = given.get("size")
    if size is not None:
        if not (isinstance(size, list) and len(size) == 3 and all(type(side) is int and side > 0 for side in size)):
            raise InputError(f"{where} has size {size!r}, [channels, height, width] was expected")
        given["size"] = tuple(size)
    cells = given.get("cells", {})
    if not isinstance(cells, dict) or not all(_texts(metrics) and metrics for metrics in cells.values()):
        raise InputError(f"{where} has cells {cells!r}, a mapping from dataset to a list of metrics was expected")
    for dataset, metrics in cells.items():
        if wrong := [metric for metric in metrics if metric not in METRICS.get(dataset, ())]:
            known = "; ".join(f"{name}: {', '.join(all_)}" for name, all_ in METRICS.items())
            raise InputError(f"{where} has the cell {dataset}/{wrong[0]}, of these one was expected: {known}")
    given["cells"] = {dataset: tuple(metrics) for dataset, metrics in cells.items()}
    published = given.get("published")
    if published is not None:
        keys = ("table", "method", "variant")
        if not isinstance(published, dict) or sorted(published) != sorted(keys) or not _texts([*published.values()]):
            raise InputError(f"{where} has published {published!r}, table, method and variant were expected as texts")
        given["published"] = tuple(published[key] for key in keys)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _known(given: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in given:
        if key not in keys:
            raise InputError(f"{where} has the unknown key {key!r}, one of {', '.join(sorted(keys))} was expected")
