"""An evaluation from request to result: the task measures the file, and the measurement is compared with its entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from esbnn_core.checkpoint.catalogue import TASKS, Entry
from esbnn_core.checkpoint.fetch import drop_if_damaged
from esbnn_core.errors import InputError, check_choice
from tasks.evaluate.dataset_sizes import published_images
from tasks.evaluate.options import EvaluateRequest, check_new_entry, check_options, check_request
from tasks.evaluate.report import complete_entry
from tasks.evaluate.target import Target, find_target

OWN_METRIC = {"classification": "top1", "detection": "map_11point", "super_resolution": "psnr"}
"""Metric of a file without an entry."""


@dataclass(frozen=True)
class Measured:
    """What a task reports of a file, before it is compared with anything.

    Attributes:
        task: of TASKS.
        network: name of the network, or of the recipe that built it.
        options: of the network.
        ops: BOPs/64 + FLOPs of one input, None where they cannot be counted; so are bops, flops and binary_params.
        bops: binary operations.
        flops: real operations.
        params: parameters.
        binary_params: parameters of one bit.
        backend: what ran: "latent" or "packed".
        device: where it ran.
        image_size: side, or height and width, of the input that operations are counted for.
        dataset: what was measured on, "" for nothing.
        split: of the dataset.
        images: how many were evaluated.
        seconds: of the evaluation.
        metrics: by name.
        warning: what a person must know of the numbers, or "".
        details: what only this task reports.
    """

    task: str
    network: str
    options: Mapping[str, Any]
    ops: float | None
    bops: float | None
    flops: float | None
    params: int
    binary_params: int | None
    backend: str
    device: str
    image_size: int | list[int]
    dataset: str
    split: str
    images: int
    seconds: float
    metrics: Mapping[str, Any]
    warning: str
    details: Mapping[str, Any] = field(default_factory=dict)


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """What --json writes: expected and measured, file, hash, cost, images and time.

    Raises:
        InputError: a request, file or data set that does not fit.
    """
    check_request(request)
    target = find_target(request)
    if request.new_entry is not None:
        check_new_entry(request, target.path, target.entry)
    with drop_if_damaged(target.path):
        measured = measure(request, target)
    return _compare(request, target, measured)


def measure(request: EvaluateRequest, target: Target) -> Measured:
    """Let the file's task run it. Raises InputError for what does not fit."""
    if target.entry is not None:
        task = target.entry.task
    else:
        task = _find_task(request, target)
        check_options(request, task, None)
    found = _run_classifier(request, target) if task == "classification" else _run_by_config(task, request, target)
    common = [one.name for one in fields(Measured) if one.name in found]
    details = {name: value for name, value in found.items() if name not in common}
    return Measured(task=task, details=details, **{name: found[name] for name in common})


def _find_task(request: EvaluateRequest, target: Target) -> str:
    """The task of a file without an entry: as given, else by the config's folder, else classification."""
    folders = [part for part in Path(request.config or "").parts if part in TASKS]
    if request.task or folders or request.config is None:
        return request.task or (folders[-1] if folders else "classification")
    # networks of the other tasks have no name that their file could give
    if not target.ours or not target.checkpoint.network:
        raise InputError(f"config {request.config} is not in a folder of a task: give --task")
    return "classification"


def _run_classifier(request: EvaluateRequest, target: Target) -> dict[str, Any]:
    from tasks.classification.evaluation import METRICS, Request, evaluate

    entry = target.entry
    _check_metric(entry, METRICS)
    copied = ("data", "image_size", "crop_pct", "interpolation", "batch_size", "mean", "std")
    given: dict[str, Any] = {name: getattr(request, name) for name in copied}
    if entry is None:
        options = {name: getattr(request, name) for name in ("num_classes", "tau", "groups")}
        given["options"] = {name: value for name, value in options.items() if value is not None}
        given |= {"model": request.model, "dataset": request.dataset, "split": request.split}
    else:
        given |= {"dataset": entry.dataset if entry.metric else "", "split": entry.split or None}
        if entry.ours:
            _check_network(entry, target)
        else:
            given |= {"model": entry.network, "options": entry.options}
    if target.ours:
        given["checkpoint"] = target.checkpoint
    given = {name: value for name, value in given.items() if value is not None}
    run = {name: getattr(request, name) for name in ("limit", "backend", "device", "workers")}
    return evaluate(Request(target.path, **run, **given))


def _check_network(entry: Entry, target: Target) -> None:
    """Raise InputError unless a file of ours holds the network that its entry says."""
    held = target.checkpoint
    options = {key: value for key, value in held.options.items() if key in entry.options}
    if (held.network, options) != (entry.network, entry.options):
        raise InputError(
            f"checkpoint {target.path} must hold a {entry.network} with {entry.options} as {entry.name}, got a "
            f"{held.network} with {held.options}: correct the entry"
        )


def _run_by_config(task: str, request: EvaluateRequest, target: Target) -> dict[str, Any]:
    """Measure a detector or a super-resolution network, which its config builds."""
    entry, path = target.entry, target.path
    config, dataset, split = request.config, request.dataset, request.split or "test"
    if entry is not None:
        config, dataset, split = entry.config, dataset or entry.dataset, entry.split
    if config is None:
        raise InputError(f"{path} does not name its network: give --config, a recipe of configs/{task}")
    evaluate: Any
    METRICS: Sequence[str]
    if task == "detection":
        from tasks.detection.evaluation import METRICS, evaluate

        dataset = dataset or "VOC2007"
    else:
        from tasks.super_resolution.evaluation import METRICS, evaluate

        if dataset is None:
            raise InputError(f"{path} was given without --dataset: name a set of super-resolution images, e.g. Set5")
    _check_metric(entry, METRICS)
    run = {name: getattr(request, name) for name in ("data", "limit", "backend", "device", "batch_size", "workers")}
    options = entry.options if entry else {}
    found: dict[str, Any] = evaluate(path, config=config, overrides=options, dataset=dataset, split=split, **run)
    return {"network": entry.network if entry else Path(config).stem, **found, "config": config}


def _check_metric(entry: Entry | None, known: Sequence[str]) -> None:
    if entry is not None and entry.metric:
        check_choice(f"metric of {entry.name}", entry.metric, known)


def _compare(request: EvaluateRequest, target: Target, measured: Measured) -> dict[str, Any]:
    """The measurement beside what the entry expects; `within` is None where the two cannot be compared."""
    entry = target.entry
    metric = entry.metric if entry else OWN_METRIC[measured.task]
    if metric and metric not in measured.metrics:
        raise InputError(
            f"metric {metric} of {target.path} was not measured, only {', '.join(measured.metrics)}: name another"
        )
    value = measured.metrics[metric] if metric else None
    expected = entry.value if entry and request.dataset in (None, entry.dataset) else None
    published = published_images(measured.dataset, measured.split)
    is_whole = not request.limit if published is None else measured.images == published
    is_whole = is_whole and not request.changes_images
    if request.new_entry is not None and not is_whole:
        raise InputError(
            f"an entry must be measured on all {published:,} images of {measured.dataset}, got {measured.images:,}: "
            f"complete the set in --data"
        )
    within = None
    if entry is not None and expected is not None and value is not None and is_whole:
        within = abs(value - expected) <= entry.tolerance + 1e-9
    common = {one.name: getattr(measured, one.name) for one in fields(Measured) if one.name != "details"}
    return {
        "name": entry.name if entry else "",
        **common,
        "file": target.path,
        "sha256": target.sha256,
        "bytes": target.bytes,
        **measured.details,
        "metric": metric,
        "expected": expected,
        "measured": value,
        "whole": is_whole,
        "images_published": published,
        "tolerance": entry.tolerance if entry else None,
        "within": within,
        "source": entry.source if entry else "",
        "note": entry.note if entry else "",
        "images_per_second": measured.images / measured.seconds if measured.seconds else None,
        "entry_to_add": complete_entry(entry, target) if entry else None,
    }
