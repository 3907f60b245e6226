"""configs/tables/NAME.yaml: the systems of a table, read strictly, with every published cell looked up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esbnn_core.checkpoint.catalogue import TASKS
from esbnn_core.errors import InputError, check_choice
from esbnn_core.files import ROOT
from esbnn_core.lit.recipes import LOADER
from tasks.reproduce.tables.published import Cell, Key, find_cell, read_published

TABLES = ROOT / "configs" / "tables"
NAMES = ("figure1", "imagenet", "cifar10", "voc", "sr", "ablation", "study", "ops")
SYSTEMS = (
    "reactnet",
    "bnext",
    "binaryvit",
    "bidet",
    "bidiffsr",
    "recu",
    "ablation",
    "spread",
    "rates",
    "width",
    "start",
    "start_long",
    "start_groups",
    "start_narrow",
    "deep",
    "start_deep",
    "deep_best",
    "deep_long",
    "rates_resnet8",
    "resnet8_best",
    "recipe_resnet8",
    "recipe_resnet8_best",
    "width_resnet8",
    "width_resnet8_best",
    "taught_resnet8",
    "resnet8_long",
    "rates_resnet8_long",
    "resnet8_long_best",
    "rates_resnet20_long",
    "rates_resnet20",
    "resnet20_best",
    "start_bnext",
    "bnext_best",
    "apart_bnext",
    "start_binaryvit",
    "binaryvit_best",
    "start_bidet",
    "bidet_best",
    "start_bidiffsr",
    "bidiffsr_best",
    "groups_small",
    "groups_long",
)
OPS_RULES = ("papers", "int8", "attention")
"""papers: BOPs / 64 + FLOPs. int8: FLOPs / 8, as in BNext's README. attention: the products of attention count too."""
METRICS = {
    "ImageNet-1k": ("top1", "top5"),
    "CIFAR-10": ("top1",),
    "VOC07 test": ("mAP",),
    **dict.fromkeys(("Set5", "B100", "Urban100", "Manga109"), ("PSNR_dB", "SSIM", "LPIPS")),
}
"""Data sets of the tables and what is measured on them, by the names of published.csv."""


@dataclass(frozen=True)
class Row:
    """One system of a table.

    Attributes:
        name: unique in the table.
        system: the name that people read.
        task: of TASKS.
        network: for create_model; classification only.
        options: of the network, for create_model.
        recipe: configs, the later over the earlier. The network of a detection or super-resolution row is built by it.
        size: of the counted input, None for the network's own.
        cells: dataset -> metrics to be measured.
        published: (table, method, variant) of published.csv, None if nothing is published.
        ops_rule: of OPS_RULES, how the source counts.
        checkpoint: name of an entry of checkpoints/manifest.json, or "".
        before: recipes that run first, in order.
        words: further words of the command.
        run: folder of the run, if it is not the recipe's own.
        trainer: config of the machine that the recipe is written for.
        partner: the row of the same table that is this one with ES, or "".
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
    """A table: its rows, the published cells that they refer to, and its proxy systems.

    Attributes:
        name: of NAMES.
        title: for people.
        notes: for people.
        proxy: systems that --mode proxy trains small.
        rows: in their order.
        published: (row, dataset, metric) -> cell.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    proxy: tuple[str, ...]
    rows: tuple[Row, ...]
    published: Mapping[tuple[str, str, str], Cell]

    @property
    def counts_only(self) -> bool:
        """Whether the table is about operations only, with nothing to evaluate or train."""
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
        InputError: a missing file or one that is not YAML, an unknown or missing key, a value of a wrong type, a
            repeated name, a config or partner that does not exist, a cell that is not in published.csv.
    """
    path = folder / f"{name}.yaml"
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"table {path} cannot be read ({error}): restore the file") from error
    except yaml.YAMLError as error:
        raise InputError(f"table {path} is not YAML ({' '.join(str(error).split())}): correct that place") from error
    if not isinstance(body, dict):
        raise InputError(
            f"table {path} must be a mapping with title, notes, proxy, defaults and rows, got {type(body).__name__}"
        )
    _check_keys(body, {"title", "notes", "proxy", "defaults", "rows"}, str(path))
    title, notes, proxy = body.get("title"), body.get("notes", []), body.get("proxy", [])
    if not isinstance(title, str) or not _are_texts(notes) or not _are_texts(proxy):
        raise InputError(f"table {path}: title must be a text, notes and proxy must be lists of texts")
    for system in proxy:
        check_choice(f"{path}: proxy system", system, SYSTEMS)
    defaults, entries = body.get("defaults", {}), body.get("rows")
    if not isinstance(defaults, dict) or not isinstance(entries, list) or not entries:
        raise InputError(f"table {path}: rows must be a list of mappings and not empty, defaults a mapping")
    rows = [_read_row(entry, defaults, f"{path} row {number}") for number, entry in enumerate(entries, 1)]
    names = [row.name for row in rows]
    cells: dict[tuple[str, str, str], Cell] = {}
    for row in rows:
        where = f"{path} row {row.name}"
        if names.count(row.name) > 1:
            raise InputError(f"{path} has two rows of the name {row.name}: give each its own name")
        if row.partner and (row.partner not in names or row.partner == row.name):
            raise InputError(f"{where}: partner must be another row of the table, got {row.partner!r}")
        for dataset, metrics in row.cells.items() if row.published else ():
            for metric in metrics:
                cells[row.name, dataset, metric] = find_cell(published, (*row.published, dataset, metric), where)
    return Table(name, title, tuple(notes), tuple(proxy), tuple(rows), cells)


def read_tables(names: Iterable[str], folder: Path = TABLES) -> list[Table]:
    """The tables of those names, with the published.csv of the same folder. Raises InputError, see read_table."""
    published = read_published(folder / "published.csv")
    return [read_table(name, published, folder) for name in names]


def _read_row(entry: Any, defaults: dict[str, Any], where: str) -> Row:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be a mapping of {', '.join(sorted(_KEYS))}, got {type(entry).__name__}")
    _check_keys(defaults, _KEYS - {"name"}, f"{where} (defaults)")
    _check_keys(entry, _KEYS, where)
    given = {**defaults, **entry}
    where = f"{where} ({given.get('name', 'without a name')})"
    for key in ("name", "system", "task"):
        if not given.get(key):
            raise InputError(f"{where} lacks {key}: add it")
    for key in _TEXT & given.keys():
        if not isinstance(given[key], str):
            raise InputError(f"{where}: {key} must be a text, got {given[key]!r}")
    for key in _TEXTS & given.keys():
        if not _are_texts(given[key]):
            raise InputError(f"{where}: {key} must be a list of texts, got {given[key]!r}")
        given[key] = tuple(given[key])
    _check_choices(given, where)
    before = given.get("before", [])
    if not isinstance(before, list) or not all(_are_texts(stage) and stage for stage in before):
        raise InputError(f"{where}: before must be a list of lists of configs, got {before!r}")
    given["before"] = tuple(tuple(stage) for stage in before)
    for config in (*given.get("recipe", ()), *(c for stage in before for c in stage), given.get("trainer", "")):
        if config and not (ROOT / config).is_file():
            raise InputError(f"{where} names the config {config}, which does not exist: correct the path")
    return Row(**given)


def _check_choices(given: dict[str, Any], where: str) -> None:
    """Check task, network, size, cells and published of one row, and turn them into the fields of Row."""
    for key, choices in (("task", TASKS), ("ops_rule", OPS_RULES)):
        check_choice(f"{where}: {key}", given.get(key, choices[0]), choices)
    options = given.get("options", {})
    if not isinstance(options, dict):
        raise InputError(f"{where}: options must be a mapping, got {options!r}")
    classifier = given["task"] == "classification"
    if classifier != bool(given.get("network")) or (not classifier and (options or not given.get("recipe"))):
        raise InputError(
            f"{where} must name its network as its task does: classification by network and options, the others by a "
            f"recipe"
        )
    size = given.get("size")
    if size is not None:
        if not (isinstance(size, list) and len(size) == 3 and all(type(side) is int and side > 0 for side in size)):
            raise InputError(f"{where}: size must be [channels, height, width], got {size!r}")
        given["size"] = tuple(size)
    cells = given.get("cells", {})
    if not isinstance(cells, dict) or not all(_are_texts(metrics) and metrics for metrics in cells.values()):
        raise InputError(f"{where}: cells must map each dataset to a list of metrics, got {cells!r}")
    for dataset, metrics in cells.items():
        if wrong := [metric for metric in metrics if metric not in METRICS.get(dataset, ())]:
            known = "; ".join(f"{name}: {', '.join(all_)}" for name, all_ in METRICS.items())
            raise InputError(f"{where}: a cell must be one of {known}, got {dataset}/{wrong[0]}")
    given["cells"] = {dataset: tuple(metrics) for dataset, metrics in cells.items()}
    published = given.get("published")
    if published is not None:
        keys = ("table", "method", "variant")
        if (
            not isinstance(published, dict)
            or sorted(published) != sorted(keys)
            or not _are_texts([*published.values()])
        ):
            raise InputError(f"{where}: published must be the texts table, method and variant, got {published!r}")
        given["published"] = tuple(published[key] for key in keys)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _check_keys(given: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in given:
        check_choice(f"{where}: key", key, sorted(keys))
