"""Evaluate a released checkpoint by name, or any network file by path or address, against what is published.

    python -m tasks.evaluate --list
    python -m tasks.evaluate es_bnext_tiny.pth.tar --entry es_bnext_tiny --data /data/imagenet
    python -m tasks.evaluate packed.safetensors --data data --dataset cifar10 --json result.json

Exit code 0: within the tolerance, or nothing to compare with; 1: outside the tolerance; 2: an error, told in one
sentence on stderr; 130: stopped by Ctrl-C. docs/reference/checkpoints.md says more. What a task does itself is in its
evaluation.py.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esbnn_core.checkpoint.catalogue import CATALOGUE, TASKS, Entry, read_catalogue
from esbnn_core.checkpoint.fetch import check_file, checkpoint_cache, drop, fetch
from esbnn_core.checkpoint.format import read_checkpoint
from esbnn_core.errors import DamagedError, InputError
from esbnn_core.files import write_atomically
from tasks.evaluate.dataset_sizes import published_images
from tasks.evaluate.options import PREPARATION, check, check_new, check_options
from tasks.evaluate.report import completed, own_entry, text

OWN_METRIC = {"classification": "top1", "detection": "map_11point", "super_resolution": "psnr"}
SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
BACKENDS = ("auto", "latent", "packed")
WORKERS = min(8, os.cpu_count() or 1)
_OWN_WORDS = {
    **{" or data.download to true": ", or unpack its archive there", "data.root": "--data"},
    **{"data.batch_size": "--batch-size", "data.num_workers": "--workers"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.target is None) != args.list:
        parser.error("a NAME, PATH or URL is expected, or --list alone")
    try:
        check(args, parser)
        if args.list:
            print(read_catalogue(args.catalogue).table())
            return 0
        result = _evaluate(args)
        print(text(result))  # before anything below can fail: an evaluation may have taken hours
        if args.json:
            write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())
        if args.print_entry is not None:
            home, made_by = Path(args.catalogue).parent, args.made_by or ""
            entry = own_entry(result, args.print_entry, home, args.config or "", made_by, args.tolerance)
            print(f"\nthe entry for {args.catalogue}:\n{entry.json()}")
    except (InputError, OSError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as a shell has it; 1 would say that the file misses its value
    return 1 if result["within"] is False else 0


def evaluate_name(
    name: str,
    *,
    data: str,
    dataset: str | None = None,
    backend: str = "auto",
    device: str = "cpu",
    limit: int = 0,
    batch_size: int | None = 128,
    workers: int = WORKERS,
    catalogue: str | Path = CATALOGUE,
) -> dict[str, Any]:
    """What --json writes, for an entry of the catalogue: expected and measured, file, hash, cost, images and time.

    Args:
        name: of the entry. data: folder of its dataset. dataset: another set than the entry's, of super-resolution
            alone; nothing is expected of it then. backend: auto, latent or packed. device: cpu or cuda.
        limit: the first so many images only, 0 for all; `within` is then None. batch_size: of a classifier, the others
            keep their config's. workers: processes that read images. catalogue: the manifest.

    Raises:
        InputError: an unknown name, a file that is not at hand or not the right one, data that does not fit.
    """
    if read_catalogue(catalogue).find(name).task != "classification":
        batch_size = None
    given: dict[str, Any] = {"target": name, "catalogue": catalogue, "data": data, "dataset": dataset}
    given |= {"backend": backend, "device": device, "limit": limit, "batch_size": batch_size, "workers": workers}
    return _evaluate(argparse.Namespace(**{**vars(_parser().parse_args([])), **given}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.evaluate",
        description="A checkpoint's metric against the published one, with its cost",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "target",
        metavar="NAME|PATH|URL",
        nargs="?",
        help="of the catalogue, or an official file or .safetensors of ours",
    )
    add("--list", action="store_true", help="print the catalogue")
    add("--entry", metavar="NAME", help="the file at PATH or URL is that of this entry")
    add("--catalogue", metavar="FILE", default=CATALOGUE, help="another manifest than checkpoints/manifest.json")
    add("--task", choices=TASKS, help="of a PATH; default what --config lies under, or classification")
    add("--config", metavar="FILE", help="recipe that builds a detector or a super-resolution network")
    add("--model", metavar="NAME", help="classifier; a .safetensors file knows its own")
    add("--tau", type=int, help="expansion factor, with --model")
    add("--groups", type=int, help="groups, with --model")
    add("--num-classes", type=int, help="classes of the read-out, with --model (default the dataset's)")
    add("--data", metavar="ROOT", help="folder that has the dataset (default data, or the config's)")
    add("--dataset", help="of a PATH: imagenet (default), cifar10, ..., VOC2007, or a super-resolution set")
    add("--split", choices=("val", "test"), help="of a PATH; imagenet: its val folder in both cases")
    add("--limit", type=int, default=0, metavar="N", help="the first N images only")
    add("--image-size", type=int, metavar="PIXELS", help="default the dataset's")
    add("--crop-pct", type=float, help="share of the resized side that is cut (default the recipe's)")
    add("--interpolation", choices=("bilinear", "bicubic"), help="default the recipe's")
    add("--mean", type=float, nargs="+", help="of the normalisation (default the recipe's)")
    add("--std", type=float, nargs="+", help="of the normalisation (default the recipe's)")
    add("--backend", choices=BACKENDS, default="auto", help="auto: what the file holds")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--batch-size", type=int, help="default 128 of a classifier, the config's of the others")
    add("--workers", type=int, default=WORKERS, help="processes that read images")
    add("--json", metavar="FILE", help="write the result here too")
    add("--print-entry", metavar="NAME", help="print the catalogue's entry of a .safetensors file of ours")
    add("--made-by", metavar="COMMAND", help="with --print-entry: the command that trained it")
    add("--tolerance", type=float, help="with --print-entry: how far a measurement may lie from this one")
    return parser


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """What --json writes."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was given and torch sees no GPU: use --device cpu")
    if args.limit < 0 or args.workers < 0:
        raise InputError(f"limit={args.limit} and workers={args.workers} were given, 0 or more was expected")
    if args.backend not in BACKENDS:
        raise InputError(f"backend {args.backend!r} was given, one of {', '.join(BACKENDS)} was expected")
    prepared = any(getattr(args, option) is not None for option in PREPARATION)
    path, entry = _file(args)
    if args.print_entry is not None:
        check_new(args, path, entry, not args.limit and not prepared)
    try:
        task, found = _measure(path, entry, args)
    except DamagedError as error:
        if drop(path):  # else it would be taken from the cache for ever
            raise InputError(f"{error}; it was taken out of the cache") from error
        raise
    metric = entry.metric if entry else OWN_METRIC[task]
    if metric and metric not in found["metrics"]:
        raise InputError(f"metric {metric} of {path} was not measured, only {', '.join(found['metrics'])} were")
    measured = found["metrics"][metric] if metric else None
    expected = entry.value if entry and args.dataset in (None, entry.dataset) else None
    known = published_images(found["dataset"], found["split"])
    whole = not prepared and (not args.limit if known is None else found["images"] == known)
    if args.print_entry is not None and not whole:
        raise InputError(
            f"{found['images']:,} images of {found['dataset']} lie in --data, all {known:,} were expected for an entry"
        )
    within = None
    if expected is not None and measured is not None and whole:
        assert entry is not None
        within = abs(measured - expected) <= entry.tolerance + 1e-9
    return {
        "name": entry.name if entry else "",
        "task": task,
        **found,
        "bytes": Path(path).stat().st_size,
        "metric": metric,
        "expected": expected,
        "measured": measured,
        "whole": whole,
        "images_published": known,
        "tolerance": entry.tolerance if entry else None,
        "within": within,
        "source": entry.source if entry else "",
        "note": entry.note if entry else "",
        "images_per_second": found["images"] / found["seconds"] if found["seconds"] else None,
        "entry_to_add": completed(entry, path) if entry else None,
    }


def _measure(path: str, entry: Entry | None, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The task of a file, and what its evaluation gives."""
    task = entry.task if entry else _task(args, path)
    if entry is None:
        check_options(args, task, None)
    return task, _classifier(path, entry, args) if task == "classification" else _by_config(task, path, entry, args)


def _file(args: argparse.Namespace) -> tuple[str, Entry | None]:
    """The file on this machine, checked if its hash is known, and its entry."""
    target = args.target
    address = target.startswith(("http://", "https://"))
    plain = address or os.sep in target or target.endswith(SUFFIXES) or Path(target).is_file()
    if plain and args.entry is None:
        if not address:
            _check_file_there(target)
        return (str(fetch(target, checkpoint_cache())) if address else target), None
    catalogue = read_catalogue(args.catalogue)
    entry = catalogue.find(args.entry or target)
    if not entry.readable:
        raise InputError(f"checkpoint {entry.name} cannot be read by this project: {entry.note}")
    check_options(args, entry.task, entry)  # before anything is fetched
    if args.entry is None:
        return str(fetch(entry, checkpoint_cache(), files=catalogue.folder)), entry
    if address:
        known = replace(entry, file=None, url=target, access="direct")
        return str(fetch(known, checkpoint_cache())), entry
    _check_file_there(target)
    check_file(Path(target), entry.sha256, entry.bytes, f"it is not the file of {entry.name}, fetch it again")
    return target, entry


def _check_file_there(target: str) -> None:
    if "://" in target:
        raise InputError(f"address {target} was given, http://... or https://... was expected, or a PATH")
    if not Path(target).is_file():
        told = "is a folder" if Path(target).is_dir() else "does not exist"
        raise InputError(f"checkpoint {target} {told}: give the path of a file, or a name of --list")


def _task(args: argparse.Namespace, path: str) -> str:
    """What the file at a path is for: as said, else what the config lies under, else a classifier."""
    named = [part for part in Path(args.config or "").parts if part in TASKS]
    if args.task or named or args.config is None:
        return str(args.task or ["classification", *named][-1])
    # the networks of the other tasks have no name that their file could tell
    if not path.endswith(".safetensors") or not read_checkpoint(path).network:
        raise InputError(f"config {args.config} does not lie under the name of a task: give --task")
    return "classification"


def _classifier(path: str, entry: Entry | None, args: argparse.Namespace) -> dict[str, Any]:
    from tasks.classification.evaluation import METRICS, Request, evaluate

    _check_metric(entry, METRICS)
    given: dict[str, Any] = {
        **{key: getattr(args, key) for key in ("data", "image_size", "crop_pct", "interpolation", "batch_size")},
        **{key: tuple(getattr(args, key)) if getattr(args, key) else None for key in ("mean", "std")},
    }
    if entry is None:
        options = {
            key: getattr(args, key) for key in ("num_classes", "tau", "groups") if getattr(args, key) is not None
        }
        given |= {"model": args.model, "options": options, "dataset": args.dataset, "split": args.split}
    else:
        given |= {"dataset": entry.dataset if entry.metric else "", "split": entry.split or None}
        if entry.ours:
            _check_network(entry, path)
        else:
            given |= {"model": entry.network, "options": entry.options}
    given = {key: value for key, value in given.items() if value is not None}
    asked = Request(path, limit=args.limit, backend=args.backend, device=args.device, workers=args.workers, **given)
    return evaluate(asked)


def _check_metric(entry: Entry | None, known: Sequence[str]) -> None:
    if entry is not None and entry.metric and entry.metric not in known:
        raise InputError(
            f"checkpoint {entry.name} has the metric {entry.metric}, one of {', '.join(known)} was expected: "
            f"correct the entry"
        )


def _check_network(entry: Entry, path: str) -> None:
    """Raise InputError unless a file of ours holds the network that its entry says."""
    held = read_checkpoint(path)
    options = {key: value for key, value in held.options.items() if key in entry.options}
    if (held.network, options) != (entry.network, entry.options):
        raise InputError(
            f"checkpoint {path} holds a {held.network} with {held.options}, {entry.network} with {entry.options} was "
            f"expected of {entry.name}: correct the entry"
        )


def _by_config(task: str, path: str, entry: Entry | None, args: argparse.Namespace) -> dict[str, Any]:
    config, dataset, split = args.config, args.dataset, args.split or "test"
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
    found: dict[str, Any] = evaluate(
        path,
        config=config,
        overrides=entry.options if entry else {},
        dataset=dataset,
        split=split,
        **{key: getattr(args, key) for key in ("data", "limit", "backend", "device", "batch_size", "workers")},
    )
    return {"network": entry.network if entry else Path(config).stem, **found, "config": config}


def _sentence(error: Exception) -> str:
    text = str(error)
    if text.startswith("Caught "):
        from esbnn_core.lit.cli import sentence  # of a data worker: Lightning is loaded by then

        text = sentence(error)
    # the tasks name the options of their recipes
    for option, own in _OWN_WORDS.items():
        text = text.replace(option, own)
    return text
