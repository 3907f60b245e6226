"""Evaluate a released checkpoint by name, or any network file by path or address, against what is published.

    python -m tasks.evaluate --list
    python -m tasks.evaluate es_bnext_tiny.pth.tar --entry es_bnext_tiny --data /data/imagenet
    python -m tasks.evaluate packed.safetensors --data data --dataset cifar10 --json result.json

Exit code 0: within the tolerance, or nothing to compare with; 1: outside the tolerance; 2: an error, one sentence on
stderr; 130: stopped by Ctrl-C. docs/reference/checkpoints.md has more. The evaluation.py of each task does the work.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from esbnn_core.checkpoint.catalogue import CATALOGUE, TASKS, read_catalogue
from esbnn_core.errors import InputError, find_sentence, refuse
from esbnn_core.files import write_atomically
from tasks.evaluate.measure import evaluate
from tasks.evaluate.options import BACKENDS, EvaluateRequest, flag
from tasks.evaluate.report import format_result, make_own_entry

WORKERS = min(8, os.cpu_count() or 1)
_FLAGS = {" or data.download to true": ", or unpack its archive there", "data.root": "--data"}
_FLAGS |= {"data.batch_size": "--batch-size", "data.num_workers": "--workers"}
"""Options of recipes, as the tasks' errors name them, and what they are called here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    if (args.target is None) != args.list:
        parser.error("a NAME, PATH or URL is expected, or --list alone")
    try:
        _check(args, parser)
        if args.list:
            print(read_catalogue(args.catalogue).table())
            return 0
        result = evaluate(_make_request(args))
        print(format_result(result))  # before anything below can fail: an evaluation may have taken hours
        if args.json is not None:
            write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())
        if args.print_entry is not None:
            home, made_by = Path(args.catalogue).parent, args.made_by or ""
            entry = make_own_entry(result, args.print_entry, home, args.config or "", made_by, args.tolerance)
            print(f"\nthe entry for {args.catalogue}:\n{entry.json()}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as shells have it; 1 would mean that the file misses its value
    except Exception as error:
        return refuse(error, _sentence)
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
        name: of the entry.
        data: folder of its dataset.
        dataset: another set than the entry's, for super-resolution alone; nothing is expected of it then.
        backend: "auto", "latent" or "packed".
        device: "cpu" or "cuda".
        limit: evaluate only this many images, the first ones or, of a folder of classes, evenly spread, and `within`
            is None; 0 for all.
        batch_size: of a classifier; the others keep their config's.
        workers: processes that read images.
        catalogue: the manifest.

    Raises:
        InputError: an unknown name, a file that is missing or is not the entry's, data that does not fit.
    """
    if read_catalogue(catalogue).find(name).task != "classification":
        batch_size = None
    request = EvaluateRequest(
        name,
        catalogue=catalogue,
        data=data,
        dataset=dataset,
        backend=backend,
        device=device,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
    )
    return evaluate(request)


def _make_request(args: argparse.Namespace) -> EvaluateRequest:
    given = {one.name: getattr(args, one.name) for one in fields(EvaluateRequest) if one.name != "new_entry"}
    given |= {name: tuple(given[name]) for name in ("mean", "std") if given[name]}
    return EvaluateRequest(new_entry=args.print_entry, **given)


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse options of the command itself that would be ignored or fail at the end, before anything is read."""
    if args.list:
        given = {key for key, value in vars(args).items() if value != parser.get_default(key)}
        for option in sorted(given - {"list", "catalogue"}):
            raise InputError(f"{flag(option)} was given with --list, which takes --catalogue alone: leave it out")
        return
    if args.print_entry is None:
        for option in ("made_by", "tolerance"):
            if getattr(args, option) is not None:
                raise InputError(f"{flag(option)} was given without --print-entry: leave it out")
    if args.json is not None:
        path = Path(args.json)
        if path.is_dir():
            raise InputError(f"--json must be a file, got the folder {path}: name one in it")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(f"--json {path} cannot be written, {existing} takes no file: name another")


def _make_parser() -> argparse.ArgumentParser:
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
        help="name of the catalogue, or where an official file or a .safetensors of ours is",
    )
    add("--list", action="store_true", help="print the catalogue")
    add("--entry", metavar="NAME", help="the catalogue's entry that the file at PATH or URL is of")
    add("--catalogue", metavar="FILE", default=CATALOGUE, help="manifest to use in place of checkpoints/manifest.json")
    add("--task", choices=TASKS, help="of a PATH; default the one --config is in the folder of, or classification")
    add("--config", metavar="FILE", help="recipe that builds a detector or a super-resolution network")
    add("--model", metavar="NAME", help="classifier that the file is of; a .safetensors file names its own")
    add("--tau", type=int, help="expansion factor, with --model")
    add("--groups", type=int, help="groups, with --model")
    add("--num-classes", type=int, help="classes of the read-out, with --model (default the dataset's)")
    add("--data", metavar="ROOT", help="folder of the dataset (default data, or the config's)")
    add("--dataset", help="of a PATH: imagenet (default), cifar10, ..., VOC2007, or a super-resolution set")
    add("--split", choices=("val", "test"), help="of a PATH; imagenet: its val folder in both cases")
    add("--limit", type=int, default=0, metavar="N", help="evaluate N images only, from all over a folder of classes")
    add("--image-size", type=int, metavar="PIXELS", help="side of the images (default the dataset's)")
    add("--crop-pct", type=float, help="share of the resized side that is cut (default the recipe's)")
    add("--interpolation", choices=("bilinear", "bicubic"), help="of the resizing (default the recipe's)")
    add("--mean", type=float, nargs="+", help="of the normalisation (default the recipe's)")
    add("--std", type=float, nargs="+", help="of the normalisation (default the recipe's)")
    add("--backend", choices=BACKENDS, default="auto", help="auto runs what the file holds")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--batch-size", type=int, help="default 128 for a classifier, the config's for the others")
    add("--workers", type=int, default=WORKERS, help="processes that read images")
    add("--json", metavar="FILE", help="also write the result to this file")
    add("--print-entry", metavar="NAME", help="also print the catalogue's entry for a .safetensors file of ours")
    add("--made-by", metavar="COMMAND", help="with --print-entry: the command that trained it")
    add("--tolerance", type=float, help="with --print-entry: how far another measurement may be from this one")
    return parser


def _sentence(error: Exception) -> str | None:
    text = find_sentence(error)
    if text is None:
        return None
    if text.startswith("Caught "):
        from esbnn_core.lit.refusals import sentence  # of a data worker: Lightning is loaded by then

        text = sentence(error) or text
    for option, here in _FLAGS.items():
        text = text.replace(option, here)
    return text
