"""Recipes: configs that may start from another one (`base: FILE`), and what a run gets that its recipe leaves open.

Everything that reads a recipe reads it here: the command line of the tasks, `tasks.reproduce` and the tests.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT

LOGGER = "lightning.pytorch.loggers.CSVLogger"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
RATE = "lightning.pytorch.callbacks.LearningRateMonitor"
DEPTH = 100
"""Lists and mappings in each other that a config may have."""
_APPEND = "+"
"""The end of a key that adds to a list."""
_ADDED = "callbacks" + _APPEND
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Of configs and tables; libyaml's takes a tenth of the time, where PyYAML was built with it."""


def read_config(path: str | Path) -> dict[str, Any]:
    """A config file with its `base` files merged in, without that key.

    The base is looked for beside the config that names it, then below the repository; it may have a base itself.
    Mappings merge key by key. Everything else replaces what the base has: values, lists, objects of another
    `class_path`. A key `callbacks+` adds to the list of the base.

    Args:
        path: of a YAML or JSON file.

    Raises:
        InputError: a file that is missing, cannot be read or holds no mapping, or a base that leads back to itself.
    """
    return _read(Path(path), ())


def read_recipe(path: str | Path, monitor: str = "") -> dict[str, Any]:
    """`read_config` of the file that names a run, with the defaults of a run under it: see `with_run_defaults`."""
    return with_run_defaults(read_config(path), Path(path).stem, monitor)


def with_run_defaults(body: Mapping[str, Any], name: str, monitor: str = "") -> dict[str, Any]:
    """A config with the folder, logger and callbacks of a run where its `trainer` names none.

    - default_root_dir: runs/NAME
    - logger: CSVLogger into that folder
    - callbacks: two ModelCheckpoint (the best by `monitor`, and the last), LearningRateMonitor (at model.lr_interval),
      those of `callbacks+`, and ExportWeights

    Args:
        body: as `read_config` returns it; left as it is.
        name: of the run.
        monitor: metric of the validation, the higher the better; without one the newest checkpoint is kept.
    """
    trainer = body.get("trainer") or {}
    if not isinstance(trainer, Mapping):
        return dict(body)  # the parser refuses it
    given = dict(trainer)
    added = given.pop(_ADDED, None) if "callbacks" not in trainer else None
    folder = trainer.get("default_root_dir") or f"runs/{name}"
    defaults = {
        "default_root_dir": folder,
        "logger": [{"class_path": LOGGER, "init_args": {"save_dir": folder, "name": "", "version": ""}}],
        "callbacks": _callbacks(body.get("model"), monitor, added or []),
    }
    return {**body, "trainer": {**defaults, **given}}


def find_setting(bodies: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The value of "a.b.c" in the last of several configs that has it, as the command line takes it; None for none."""
    found = None
    for value in bodies:
        inner: Any = value
        for key in name.split("."):
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        found = inner if inner is not None else found
    return found


def _callbacks(model: object, monitor: str, added: Sequence[Any]) -> list[Any]:
    best = {"filename": "best", "monitor": monitor, "mode": "max", "enable_version_counter": False}
    # an object of its own: save_last of the best one writes last.ckpt only where the best is written
    last = {"filename": "last", "enable_version_counter": False}
    if not monitor:
        last = {"filename": "recent", "save_last": True, "enable_version_counter": False}
    interval = model.get("lr_interval", "step") if isinstance(model, Mapping) else "step"
    return [
        *({"class_path": CHECKPOINT, "init_args": kept} for kept in ([best] if monitor else []) + [last]),
        {"class_path": RATE, "init_args": {"logging_interval": interval}},
        *added,
        {"class_path": "esbnn_core.lit.callbacks.ExportWeights"},
    ]


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """above: the files whose base this is, outermost first."""
    if path.resolve() in above:
        chain = " -> ".join(file.name for file in (*above, path))
        raise InputError(f"the base of a config must not lead back to it, got {chain}: remove one of these base lines")
    try:
        text = path.read_text(encoding="utf-8")
        _check_depth(text)
        body = get_loader("yaml")(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"config {path} cannot be read ({' '.join(str(error).split())}): restore it") from error
    if not isinstance(body, dict):
        raise InputError(f"config {path} must hold a mapping, got {type(body).__name__}: restore it")
    if "base" not in body:
        return body
    base = body.pop("base")
    places = [path.parent / base, ROOT / base] if isinstance(base, str) else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(
            f"base of config {path} must be a file beside it or below the repository, got {base!r}: correct the path"
        )
    merged: dict[str, Any] = _merge(_read(found, (*above, path.resolve())), body)
    return merged


def _check_depth(text: str) -> None:
    """Raise ValueError for lists and mappings in each other that would overrun the stack of the YAML loader."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH:
            raise ValueError(f"more than {DEPTH} lists and mappings in each other")


def _merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    kinds = below.get("class_path"), above.get("class_path")
    if kinds[1] is not None and kinds[0] != kinds[1]:
        return above
    merged = dict(below)
    for key, value in above.items():
        # the list of the base, or what the base itself adds to one that it does not have
        longer = next((k for k in (key.removesuffix(_APPEND), key) if isinstance(merged.get(k), list)), None)
        if key.endswith(_APPEND) and isinstance(value, list) and longer is not None:
            merged[longer] = [*merged[longer], *value]
            continue
        merged[key] = _merge(merged[key], value) if key in merged else value
        merged.pop(key + _APPEND, None)  # a list that replaces the base's drops what the base adds to it
    return merged
