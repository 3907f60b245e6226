"""What can be asked of `tasks.evaluate`, and what is refused because it would be ignored or fail at the very end."""

from dataclasses import dataclass
from pathlib import Path

import torch

from esbnn_core.checkpoint.catalogue import CATALOGUE, Entry, name_fault, read_catalogue
from esbnn_core.errors import InputError, check_at_least, check_choice, check_workers
from esbnn_core.files import below_repository

BACKENDS = ("auto", "latent", "packed")
PREPARATION = ("image_size", "crop_pct", "interpolation", "mean", "std")
"""Options that change the images: a result with one of them is not compared with the published value."""
_OF_A_FILE = ("model", "tau", "groups", "num_classes", "dataset", "split", "task", "config")
"""Options that say what a file holds, as an entry does."""
_OF_A_CLASSIFIER = ("model", "tau", "groups", "num_classes", *PREPARATION)


@dataclass(frozen=True)
class EvaluateRequest:
    """One evaluation: the file, what it holds where it does not say so itself, the data, and how to run it.

    Attributes:
        target: name of the catalogue, path or http(s) address.
        entry: name of the entry that the file at the path or address is of.
        catalogue: manifest that names are looked up in.
        task: of a path; default the task whose folder `config` is in, or classification.
        config: recipe that builds a detector or a super-resolution network; with `new_entry` the one that trained it.
        model: network of a classifier's file; a .safetensors file names its own.
        tau: option of the network, with `model`.
        groups: option of the network, with `model`.
        num_classes: option of the network, with `model`; default the dataset's.
        data: folder of the dataset; default "data", or the config's.
        dataset: of a path; of an entry for super-resolution alone, and then nothing is expected of it.
        split: "val" or "test", of a path.
        limit: evaluate only this many images, the first ones or, of a folder of classes, evenly spread; 0 for all.
        image_size: side in pixels; default the dataset's.
        crop_pct: share of the resized side that is cut; default the recipe's.
        interpolation: "bilinear" or "bicubic"; default the recipe's.
        mean: of the normalisation, one a channel; default the recipe's.
        std: of the normalisation, one a channel; default the recipe's.
        backend: of BACKENDS; "auto" runs what the file holds.
        device: "cpu" or "cuda".
        batch_size: default 128 for a classifier, the config's for the others.
        workers: processes that read images.
        new_entry: name of the catalogue entry that the result is for.
    """

    target: str
    entry: str | None = None
    catalogue: str | Path = CATALOGUE
    task: str | None = None
    config: str | None = None
    model: str | None = None
    tau: int | None = None
    groups: int | None = None
    num_classes: int | None = None
    data: str | None = None
    dataset: str | None = None
    split: str | None = None
    limit: int = 0
    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    backend: str = "auto"
    device: str = "cpu"
    batch_size: int | None = None
    workers: int = 0
    new_entry: str | None = None

    @property
    def changes_images(self) -> bool:
        """Whether images are prepared in another way than the recipe prepares them."""
        return any(getattr(self, option) is not None for option in PREPARATION)


def check_request(request: EvaluateRequest) -> None:
    """Raise InputError for what no file could be evaluated with."""
    if request.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was given and torch finds no GPU: use --device cpu")
    check_at_least(0, limit=request.limit)
    check_workers("workers", request.workers)
    check_choice("backend", request.backend, BACKENDS)


def check_options(request: EvaluateRequest, task: str, entry: Entry | None) -> None:
    """Refuse what would be ignored: what an entry says itself, and options of another task."""
    if entry is not None:
        for option in _OF_A_FILE:
            # a super-resolution network can be evaluated on another set than its entry's
            if getattr(request, option) is not None and (option, task) != ("dataset", "super_resolution"):
                raise InputError(
                    f"{flag(option)} was given with the catalogue's {entry.name}, which says it itself: leave it out"
                )
    for option in _OF_A_CLASSIFIER if task != "classification" else ():
        if getattr(request, option) is not None:
            raise InputError(
                f"{flag(option)} was given with a network of {task}, which takes it from its config: leave it out"
            )
    if task == "classification" and entry is None and request.config is not None:
        if request.new_entry is None:
            raise InputError(
                f"--config {request.config} was given with a classifier, which its file or --model names: leave it out"
            )
        if not below_repository(request.config).is_file():
            raise InputError(f"--config {request.config} does not exist: name the recipe that trained it")


def check_new_entry(request: EvaluateRequest, path: str, entry: Entry | None) -> None:
    """Refuse `new_entry` where the evaluation of the file at `path` could not give one."""
    if entry is not None or not path.endswith(".safetensors") or request.limit or request.changes_images:
        raise InputError(
            f"--print-entry was given with {request.target}: give the PATH of a .safetensors file of ours that the "
            f"catalogue does not have, and all images as the recipe prepares them, without --limit"
        )
    home = Path(request.catalogue).parent.resolve()
    if not Path(path).resolve().is_relative_to(home):
        raise InputError(f"{path} must be below {home}, where the catalogue looks for its files: copy it there")
    name = request.new_entry or ""
    if fault := name_fault(name):
        raise InputError(f"--print-entry: {fault}: choose another")
    if name in [other.name for other in read_catalogue(request.catalogue)]:
        raise InputError(f"--print-entry {name} is a name that {request.catalogue} has: choose another")


def flag(option: str) -> str:
    """The option as it is written on the command line."""
    return f"--{option.replace('_', '-')}"
