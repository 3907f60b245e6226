"""--mode eval: measures the checkpoints that are at hand, and says of every other cell what it lacks."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from esbnn_core.catalogue import CATALOGUE, read_catalogue
from esbnn_core.checkpoint import write_atomically
from esbnn_core.errors import InputError
from esbnn_core.fetch import checkpoint_cache
from tasks.evaluate import evaluate_name
from tasks.reproduction.lines import Measured
from tasks.reproduction.places import METRIC_NAMES, PLACES, data_folder, missing_data
from tasks.reproduction.table import Row, Table

FOLDER = "evaluated"
"""Below --out: what tasks.evaluate said of each checkpoint, which later runs of any mode show again."""
Found = dict[tuple[str, str, str], Measured]
Evaluate = Callable[..., dict[str, Any]]


def evaluate_tables(
    tables: Iterable[Table],
    out: Path,
    data: str,
    *,
    evaluate: Evaluate | None = None,
    catalogue: Path = CATALOGUE,
    **options: Any,
) -> Found:
    """Every cell of the tables: measured, or why it is not. Nothing that is missing raises.

    Args:
        out: where the results are kept. data: --data. evaluate: in place of tasks.evaluate.evaluate_name. options: for
            it, e.g. device.
    """
    evaluate = evaluate or evaluate_name
    results: dict[str, dict[str, Any]] = {}
    found: Found = {}
    for table in tables:
        for row in () if table.counts_alone else table.rows:
            if row.cells and row.checkpoint and row.checkpoint not in results:
                results[row.checkpoint] = _result(row, out, data, evaluate, catalogue, options)
            found |= _cells(row, results.get(row.checkpoint, {}), data)
    return found


def kept(tables: Iterable[Table], out: Path, data: str) -> Found:
    """What an earlier evaluation into the same folder measured; cells without are not in it.

    Raises:
        InputError: a file in that folder that is no result.
    """
    found: Found = {}
    for table in tables:
        for row in table.rows:
            path = out / FOLDER / f"{row.checkpoint}.json"
            if row.checkpoint and path.is_file():
                try:
                    result = json.loads(path.read_text(encoding="utf-8"))
                    cells = _cells(row, result, data)
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise InputError(f"{path} is no result of tasks.evaluate ({error}): remove it") from error
                found |= {key: value for key, value in cells.items() if value.value is not None}
    return found


def _result(
    row: Row, out: Path, data: str, evaluate: Evaluate, catalogue: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """What tasks.evaluate says of the row's checkpoint; {"lacking": sentences, ...} where it says nothing."""
    path = out / FOLDER / f"{row.checkpoint}.json"
    told: dict[str, Any] = {"lacking": [], "dataset": "", "file": "FILE"}
    try:
        entry = read_catalogue(catalogue).find(row.checkpoint)
        names = {place.name: dataset for dataset, place in PLACES.items()}
        if entry.dataset not in names:
            raise InputError(f"checkpoint {entry.name} is of {entry.dataset or 'no data'}, no data of the tables")
        told["dataset"], root = entry.dataset, data_folder(names[entry.dataset], data)
        if entry.access == "page" and not any(checkpoint_cache().glob(f"{entry.name}.*")):
            raise InputError(
                f"file {entry.name} lies behind a page for people: download it at {entry.url}, then python -m "
                f"tasks.evaluate FILE --entry {entry.name} --data {root} --json {path}, and this table shows it"
            )
        if missing_data(names[entry.dataset], data):
            return told  # nothing is fetched that could not be measured; each cell says what it lacks itself
        print(f"evaluating {row.checkpoint} on {entry.dataset}", flush=True)
        result = evaluate(row.checkpoint, data=root, **options)
    except (InputError, OSError) as error:
        return {**told, "lacking": [_told(error)]}
    except ModuleNotFoundError as error:
        return {**told, "lacking": [f"package {error.name} is not installed: pip install 'esbnn[{row.task}]'"]}
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _cells(row: Row, result: dict[str, Any], data: str) -> Found:
    return {
        (row.name, dataset, metric): _cell(row, dataset, metric, result, data)
        for dataset, metrics in row.cells.items()
        for metric in metrics
    }


def _cell(row: Row, dataset: str, metric: str, result: dict[str, Any], data: str) -> Measured:
    if not row.checkpoint:
        return _lacks(_untrained(row), missing_data(dataset, data))
    place = PLACES[dataset]
    other = ""
    if result["dataset"] not in ("", place.name):
        other = (
            f"the entry {row.checkpoint} is evaluated on {result['dataset']} alone: python -m tasks.evaluate "
            f"{result['file']} --config {row.recipe[0] if row.recipe else 'RECIPE'} --dataset {place.name} "
            f"--data {data_folder(dataset, data)} measures {dataset}"
        )
    if other or "lacking" in result:
        return _lacks(missing_data(dataset, data), *result.get("lacking", []), other)
    if result.get("expected") is not None and result.get("within") is None:
        return _lacks(f"{row.checkpoint} was evaluated on a part of {dataset} or on other images: leave --limit out")
    value = result["metrics"].get(METRIC_NAMES.get(metric, metric))
    # LPIPS is a text where its weights are not at hand
    if not isinstance(value, int | float) or not math.isfinite(value):
        return _lacks(f"{metric} was not measured on {dataset}" + (f": {value}" if value else ""))
    told = [f"{row.checkpoint}, sha256 {result['sha256'][:12]}, {result['images']:,} images, {result['backend']}"]
    if result.get("within") is False:
        told.append(f"OUTSIDE the entry's tolerance of {result['tolerance']:g} around {result['expected']:g}")
    if result.get("warning"):
        told.append(result["warning"])
    return Measured(float(value), "; ".join(told))


def _told(error: Exception) -> str:
    from esbnn_core.lit.cli import sentence  # lightning takes seconds to import, and counting does without

    return sentence(error)


def _untrained(row: Row) -> str:
    """What is to be done about a row without a released file."""
    if not row.recipe:
        return "no file is released, and there is no recipe for it here"
    return "no file is released: the row's command trains it"


def _lacks(*sentences: str) -> Measured:
    """Those of the sentences that say something."""
    return Measured(missing=tuple(filter(None, sentences)))
