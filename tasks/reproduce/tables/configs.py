"""The configs of a recipe, read as plain YAML: single settings, as the task's command line takes them."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT


def read_setting(recipe: tuple[str, ...], name: str) -> Any:
    """The value of the option "a.b.c" in the last config of the recipe that has it, None without any.

    Args:
        recipe: configs below the repository, the later over the earlier.
        name: the option, with dots.

    Raises:
        InputError: a config that cannot be read.
    """
    found = None
    for config in recipe:
        value: Any = read_config(ROOT / config)
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found = value if value is not None else found
    return found


@cache
def read_config(path: Path) -> dict[str, Any]:
    """A config as a mapping. Raises InputError for a file that cannot be read or holds anything else."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"config {path} cannot be read ({' '.join(str(error).split())}): restore it") from error
    if not isinstance(body, dict):
        raise InputError(f"config {path} must be a mapping, got {type(body).__name__}: restore it")
    return body
