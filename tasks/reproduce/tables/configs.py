"""The configs of a recipe as the task's command line reads them: with their base and the defaults of a run."""

from functools import cache
from pathlib import Path
from typing import Any

from esbnn_core.files import ROOT
from esbnn_core.lit import recipes


def read_setting(recipe: tuple[str, ...], name: str) -> Any:
    """The value of the option "a.b.c" in the last config of the recipe that has it, None without any.

    Args:
        recipe: configs below the repository, the later over the earlier; the first has the defaults of a run under it.
        name: the option, with dots.

    Raises:
        InputError: a config that cannot be read.
    """
    paths = [ROOT / config for config in recipe]
    return recipes.find_setting([*map(_read_first, paths[:1]), *map(read_config, paths[1:])], name)


@cache
def read_config(path: Path) -> dict[str, Any]:
    """A config as a mapping, with its base. Raises InputError for a file that cannot be read or holds anything else."""
    return recipes.read_config(path)


@cache
def _read_first(path: Path) -> dict[str, Any]:
    return recipes.read_recipe(path)
