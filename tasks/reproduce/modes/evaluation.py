"""--mode eval: measures the checkpoints that are at hand, and names what is missing for every other cell."""

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
from tasks.reproduce.modes.results import Measurement, Measurements
from tasks.reproduce.tables.datasets import METRIC_NAMES, TABLE_DATASETS, data_folder, describe_missing_data
from tasks.reproduce.tables.table import Row, Table

FOLDER = "evaluated"
"""Below --out: the results of tasks.evaluate, which later runs of any mode show again."""
Evaluate = Callable[..., dict[str, Any]]


def evaluate_tables(
    tables: Iterable[Table],
    out: Path,
    data: str,
    *,
    evaluate: Evaluate | None = None,
    catalogue: Path = CATALOGUE,
    **options: Any,
) -> Measurements:
    """Measure every cell of the tables, or say why it is not measured. Nothing that is missing raises.

    Args:
        tables: with the rows to measure.
        out: folder where the results are kept.
        data: --data.
        evaluate: in place of tasks.evaluate.evaluate_name.
        catalogue: the manifest.
        options: for evaluate, e.g. device.
    """
    evaluate = evaluate or evaluate_name
    results: dict[tuple[str, str], dict[str, Any]] = {}
    measured: Measurements = {}
    for row, dataset in _measured_rows(tables):
        key = (row.checkpoint, dataset)
        if row.checkpoint and key not in results:
            results[key] = _evaluate_row(row, dataset, out, data, evaluate, catalogue, options)
        measured |= _read_cells(row, dataset, results.get(key, {}), data)
    return measured


def read_evaluated(tables: Iterable[Table], out: Path, data: str) -> Measurements:
    """What an earlier evaluation into the same folder measured; cells without a value are left out.

    Raises:
        InputError: a file in that folder that is not a result, or is one of another checkpoint.
    """
    measured: Measurements = {}
    for row, dataset in _measured_rows(tables):
        path = result_file(out, row.checkpoint, dataset)
        if not row.checkpoint or not path.is_file():
            continue
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found = (result["name"], result["dataset"])
            cells = _read_cells(row, dataset, result, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a result of tasks.evaluate ({error}): remove it") from error
        if found != (row.checkpoint, TABLE_DATASETS[dataset].name):
            raise InputError(
                f"{path} must be a result of {row.checkpoint} on {TABLE_DATASETS[dataset].name}, got one of "
                f"{found[0] or 'a file without a name'} on {found[1]}: remove it, or evaluate with "
                f"--entry {row.checkpoint}"
            )
        measured |= {key: value for key, value in cells.items() if value.value is not None}
    return measured


def _measured_rows(tables: Iterable[Table]) -> Iterator[tuple[Row, str]]:
    """Rows with each dataset that they are measured on."""
    for table in tables:
        for row in () if table.counts_only else table.rows:
            for dataset in row.cells:
                yield row, dataset


def result_file(out: Path, checkpoint: str, dataset: str) -> Path:
    """The file that --json of tasks.evaluate is read from."""
    return out / FOLDER / f"{checkpoint}-{TABLE_DATASETS[dataset].name}.json"


def _evaluate_row(
    row: Row, dataset: str, out: Path, data: str, evaluate: Evaluate, catalogue: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """The result of tasks.evaluate for the row's checkpoint; {"missing": sentences} without one."""
    path, place = result_file(out, row.checkpoint, dataset), TABLE_DATASETS[dataset]
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
                f"file {entry.name} can only be downloaded from a web page: save {entry.url}, then run "
                f"{shlex.join([*words, '--json', str(path)])}, and this table shows its result"
            )
        if describe_missing_data(dataset, data):
            return {"missing": []}  # nothing is fetched that could not be measured; the cell names its data itself
        print(f"evaluating {row.checkpoint} on {place.name}", flush=True)
        chosen = {"dataset": place.name} if other else {}
        result = evaluate(row.checkpoint, data=data_folder(dataset, data), **chosen, **options)
    except (InputError, OSError) as error:
        return {"missing": [_sentence(error)]}
    except ModuleNotFoundError as error:
        return {"missing": [f"package {error.name} is not installed: pip install 'esbnn[{row.task}]'"]}
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _read_cells(row: Row, dataset: str, result: dict[str, Any], data: str) -> Measurements:
    metrics = row.cells[dataset]
    return {(row.name, dataset, metric): _read_cell(row, dataset, metric, result, data) for metric in metrics}


def _read_cell(row: Row, dataset: str, metric: str, result: dict[str, Any], data: str) -> Measurement:
    if not row.checkpoint:
        return _missing(_describe_unreleased(row), describe_missing_data(dataset, data))
    if "missing" in result:
        return _missing(describe_missing_data(dataset, data), *result["missing"])
    if not result["whole"]:
        return _missing(f"{row.checkpoint} was evaluated on a part of {dataset} or on other images: leave --limit out")
    value = result["metrics"].get(METRIC_NAMES.get(metric, metric))
    # LPIPS is a text if its weights are not at hand
    if not isinstance(value, int | float) or not math.isfinite(value):
        return _missing(f"{metric} was not measured on {dataset}" + (f": {value}" if value else ""))
    source = [f"{row.checkpoint}, sha256 {result['sha256'][:12]}, {result['images']:,} images, {result['backend']}"]
    if result.get("within") is False:
        source.append(f"OUTSIDE the entry's tolerance of {result['tolerance']:g} around {result['expected']:g}")
    if result.get("warning"):
        source.append(result["warning"])
    return Measurement(float(value), "; ".join(source))


def _sentence(error: Exception) -> str:
    from esbnn_core.lit.refusals import sentence  # lightning takes seconds to import, and counting does not need it

    return sentence(error) or str(error)


def _describe_unreleased(row: Row) -> str:
    """What can be done about a row without a released file."""
    if not row.recipe:
        return "no file is released, and there is no recipe for it here"
    return "no file is released: the row's command trains it"


def _missing(*sentences: str) -> Measurement:
    """A cell without a value, with the sentences that are not empty."""
    return Measurement(missing=tuple(filter(None, sentences)))
