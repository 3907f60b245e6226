"""What `python -m tasks.evaluate` refuses of its options: all that would be passed over, or fail at the very end."""

import argparse
import os
from pathlib import Path

from esbnn_core.checkpoint.catalogue import Entry, name_fault, read_catalogue
from esbnn_core.errors import InputError
from esbnn_core.files import below_repository

PREPARATION = ("image_size", "crop_pct", "interpolation", "mean", "std")
"""Options that change the images: what comes out then is not compared with the published value."""
_OF_A_FILE = ("model", "tau", "groups", "num_classes", "dataset", "split", "task", "config")
"""Options that say what a file holds, as an entry does; a super-resolution entry can be asked for another dataset."""
_OF_A_CLASSIFIER = ("model", "tau", "groups", "num_classes", *PREPARATION)


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what would be passed over or fail at the end, before anything is fetched or read."""
    if args.list:
        given = {key for key, value in vars(args).items() if value != parser.get_default(key)}
        for option in sorted(given - {"list", "catalogue"}):
            raise InputError(f"--{option.replace('_', '-')} was given with --list, which takes --catalogue alone")
        return
    if args.print_entry is None:
        for option in ("made_by", "tolerance"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} was given without --print-entry: leave it out")
    if args.json:
        path = Path(args.json)
        if path.is_dir():
            raise InputError(f"--json {path} is a folder, a file was expected: name one in it")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise InputError(f"--json {path} cannot be written, {existing} takes no file: name another")


def check_new(args: argparse.Namespace, path: str, entry: Entry | None, whole: bool) -> None:
    """Refuse --print-entry where no entry can come of it, before the evaluation."""
    if entry is not None or not path.endswith(".safetensors") or not whole:
        raise InputError(
            f"--print-entry was given with {args.target}, the PATH of a .safetensors file of ours that the catalogue "
            f"does not have was expected, and all images as the recipe prepares them, without --limit"
        )
    home = Path(args.catalogue).parent.resolve()
    if not Path(path).resolve().is_relative_to(home):
        raise InputError(f"{path} does not lie below {home}, where the catalogue looks for its files: copy it there")
    if told := name_fault(args.print_entry):
        raise InputError(f"--print-entry has the {told}: choose another")
    if args.print_entry in [other.name for other in read_catalogue(args.catalogue)]:
        raise InputError(f"--print-entry {args.print_entry} is a name that {args.catalogue} has: choose another")


def check_options(args: argparse.Namespace, task: str, entry: Entry | None) -> None:
    """Refuse what would be passed over: what an entry says itself, and options of another task."""
    if entry is not None:
        for option in _OF_A_FILE:
            if getattr(args, option) is not None and (option, task) != ("dataset", "super_resolution"):
                word = f"--{option.replace('_', '-')}"
                raise InputError(
                    f"{word} was given with the catalogue's {entry.name}, which says it itself: leave it out"
                )
    for option in _OF_A_CLASSIFIER if task != "classification" else ():
        if getattr(args, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} was given with a network of {task}, which takes it from its config: "
                f"leave it out"
            )
    if task == "classification" and entry is None and args.config is not None:
        if args.print_entry is None:
            raise InputError(
                f"--config {args.config} was given with a classifier, which its file or --model names: leave it out"
            )
        if not below_repository(args.config).is_file():
            raise InputError(f"--config {args.config} does not exist: name the recipe that trained it")
