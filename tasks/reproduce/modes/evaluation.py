"""--mode eval: measures the checkpoints that are at hand, and says of every other cell what it lacks."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from esbnn_core.checkpoint.catalogue import CATALOGUE, read_catalogue
from esbnn_core.checkpoint.fetch import checkpoint_cache, downloaded
from esbnn_core.errors import InputError
from esbnn_core.files import write_atomically
from tasks.evaluate import evaluate_name
from tasks.reproduce.modes.lines import Measured
from tasks.reproduce.tables.places import METRIC_NAMES, PLACES, data_folder, missing_data
from tasks.reproduce.tables.table import Row, Table

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
    results: dict[tuple[str, str], dict[str, Any]] = {}
    found: Found = {}
    for row, dataset in _measured_rows(tables):
        key = (row.checkpoint, dataset)
        if row.checkpoint and key not in results:
            results[key] = _result(row, dataset, out, data, evaluate, catalogue, options)
        found |= _cells(row, dataset, results.get(key, {}), data)
    return found


def kept(tables: Iterable[Table], out: Path, data: str) -> Found:
    """What an earlier evaluation into the same folder measured; cells without are not in it.

    Raises:
        InputError: a file in that folder that is no result, or of another checkpoint.
    """
    found: Found = {}
    for row, dataset in _measured_rows(tables):
        path = result_file(out, row.checkpoint, dataset)
        if not row.checkpoint or not path.is_file():
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            met = (result["name"], result["dataset"])
            cells = _cells(row, dataset, result, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no result of tasks.evaluate ({error}): remove it") from error
        if met != (row.checkpoint, PLACES[dataset].name):
            raise InputError(
                f"{path} is a result of {met[0] or 'a file without a name'} on {met[1]}, one of {row.checkpoint} on "
                f"{PLACES[dataset].name} was expected: remove it, or evaluate with --entry {row.checkpoint}"
            )
        found |= {key: value for key, value in cells.items() if value.value is not None}
    return found


def _measured_rows(tables: Iterable[Table]) -> Iterator[tuple[Row, str]]:
    """Rows with each dataset that they are measured on."""
    for table in tables:
        for row in () if table.counts_alone else table.rows:
            for dataset in row.cells:
                yield row, dataset


def result_file(out: Path, checkpoint: str, dataset: str) -> Path:
    """Where --json of tasks.evaluate is looked for."""
    return out / FOLDER / f"{checkpoint}-{PLACES[dataset].name}.json"


def _result(
    row: Row, dataset: str, out: Path, data: str, evaluate: Evaluate, catalogue: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """What tasks.evaluate says of the row's checkpoint; {"lacking": sentences} where it says nothing."""
    path, place = result_file(out, row.checkpoint, dataset), PLACES[dataset]
    try:
        entry = read_catalogue(catalogue).find(row.checkpoint)
        other = entry.dataset != place.name
        if other and entry.task != "super_resolution":
            raise InputError(f"checkpoint {entry.name} is of {entry.dataset or 'no data'}, not of {place.name}")
        if not entry.readable:
            note = entry.note.rstrip(".")
            raise InputError(f"file {entry.name} is released but cannot be read by this project: {note}")
        if entry.access == "page" and not downloaded(entry, checkpoint_cache()):
            words = ["python", "-m", "tasks.evaluate", "FILE", "--entry", entry.name]
            words += [*(["--dataset", place.name] if other else []), "--data", data_folder(dataset, data)]
            raise InputError(
                f"file {entry.name} lies behind a page for people: download it at {entry.url}, then "
                f"{shlex.join([*words, '--json', str(path)])}, and this table shows it"
            )
        if missing_data(dataset, data):
            return {"lacking": []}  # nothing is fetched that could not be measured; the cell says itself what it lacks
        print(f"evaluating {row.checkpoint} on {place.name}", flush=True)
        chosen = {"dataset": place.name} if other else {}
        result = evaluate(row.checkpoint, data=data_folder(dataset, data), **chosen, **options)
    except (InputError, OSError) as error:
        return {"lacking": [_told(error)]}
    except ModuleNotFoundError as error:
        return {"lacking": [f"package {error.name} is not installed: pip install 'esbnn[{row.task}]'"]}
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _cells(row: Row, dataset: str, result: dict[str, Any], data: str) -> Found:
    metrics = row.cells[dataset]
    return {(row.name, dataset, metric): _cell(row, dataset, metric, result, data) for metric in metrics}


def _cell(row: Row, dataset: str, metric: str, result: dict[str, Any], data: str) -> Measured:
    if not row.checkpoint:
        return _lacks(_untrained(row), missing_data(dataset, data))
    if "lacking" in result:
        return _lacks(missing_data(dataset, data), *result["lacking"])
    if not result["whole"]:
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
