"""Whether the data that a proxy trains on is below --data, looked for before hours of training end in its absence."""

from collections.abc import Iterator
from pathlib import Path

from tasks.reproduce.modes.ops import setting
from tasks.reproduce.tables.places import PLACES, missing_data

_MANGA = (
    "place 8 PNG pages of manga in train/manga-like and 4 or more others in manga-like there, e.g. of Ubunchu! "
    "(sirtetris.gitlab.io/ubunchu-translation)"
)


def missing_proxy_data(task: str, dataset: str, root: str, recipe: tuple[str, ...], data: str) -> str:
    """A sentence about what a run lacks below --data, "" where it is there or where the run itself must look.

    Args:
        task: of catalogue.TASKS. dataset: for classification its name. root: below --data, "" for data that comes with
            the repository. recipe: configs of the run, which name the image lists or folders of the other tasks.

    Raises:
        InputError: a config that cannot be read.
    """
    if not root:
        return ""
    if task == "classification":
        keys = [key for key, place in PLACES.items() if place.name == dataset]
        return missing_data(keys[0], data) if keys else ""
    home = Path(data) / root
    for name in dict.fromkeys((*(setting(recipe, "data.train") or ()), *(setting(recipe, "data.val") or ()))):
        places = list(_image_list(home, name) if task == "detection" else _image_folders(home, name))
        if not any(place.exists() for place in places):
            get = PLACES["VOC07 test"].get if task == "detection" else _MANGA
            return f"{name} is not at {places[0]}: {get}"
    return ""


def _image_list(home: Path, name: str) -> Iterator[Path]:
    """Where the list YEAR/LIST of a detector lies."""
    year, _, part = name.partition("/")
    yield home / year / "ImageSets" / "Main" / f"{part}.txt"


def _image_folders(home: Path, name: str) -> Iterator[Path]:
    """Where a set of super-resolution may lie, whatever it has inside."""
    for base in (home, home / "benchmark"):
        yield from (base / f"{name}{end}" for end in ("", "_HR", "_train_HR"))
