"""Whether the data of a proxy is below --data, checked before hours of training end without it."""

from collections.abc import Iterator
from pathlib import Path

from tasks.reproduce.tables.configs import read_setting
from tasks.reproduce.tables.datasets import TABLE_DATASETS, describe_missing_data

_MANGA = (
    "place 8 PNG pages of manga in train/manga-like and 4 or more others in manga-like there, e.g. of Ubunchu! "
    "(sirtetris.gitlab.io/ubunchu-translation)"
)


def describe_missing_proxy_data(task: str, dataset: str, root: str, recipe: tuple[str, ...], data: str) -> str:
    """A sentence about what a run lacks below --data, "" if it is there or only the run itself can check.

    Args:
        task: of catalogue.TASKS.
        dataset: its name, for classification.
        root: folder below --data, "" for data that comes with the repository.
        recipe: configs of the run; those of the other tasks name the image lists or folders.
        data: --data.

    Raises:
        InputError: a config that cannot be read.
    """
    if not root:
        return ""
    if task == "classification":
        keys = [key for key, known in TABLE_DATASETS.items() if known.name == dataset]
        return describe_missing_data(keys[0], data) if keys else ""
    home = Path(data) / root
    sets = (*(read_setting(recipe, "data.train") or ()), *(read_setting(recipe, "data.val") or ()))
    for name in dict.fromkeys(sets):
        places = list(_image_list(home, name) if task == "detection" else _image_folders(home, name))
        if not any(place.exists() for place in places):
            get = TABLE_DATASETS["VOC07 test"].get if task == "detection" else _MANGA
            return f"{name} is not at {places[0]}: {get}"
    return ""


def _image_list(home: Path, name: str) -> Iterator[Path]:
    """The file of the list YEAR/LIST of a detector."""
    year, _, part = name.partition("/")
    yield home / year / "ImageSets" / "Main" / f"{part}.txt"


def _image_folders(home: Path, name: str) -> Iterator[Path]:
    """The folders that a super-resolution set may have, whatever they contain."""
    for base in (home, home / "benchmark"):
        yield from (base / f"{name}{end}" for end in ("", "_HR", "_train_HR"))
