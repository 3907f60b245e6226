"""The commands that train a row: its earlier steps and trunks, then the row itself, resumed if a run was cut off."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT
from esbnn_core.lit.recipes import LOGGER
from tasks.reproduce.modes.identity import digest_configs, list_differences
from tasks.reproduce.tables.configs import read_config, read_setting
from tasks.reproduce.tables.table import Row

CHECKPOINTS = ("last.ckpt", "recent.ckpt")
NOTE = "reproduce.json"
"""In the folder of a run, from its start: the command and the identity of the run."""
MACHINE = {
    "trainer": {"accelerator", "devices", "num_nodes", "strategy", "precision", "log_every_n_steps", "sync_batchnorm"},
    "model": {"channels_last", "compile_backend"},
    "data": {"batch_size", "num_workers", "on_device"},
}
"""Options that another machine's config may set for a run that goes on there."""


@dataclass(frozen=True)
class Stage:
    """One command of a row.

    Attributes:
        words: "python", "-m", ...
        run: folder that it writes, below the repository.
        devices: processes it asks for.
        finished: whether its weights are there.
        identity: what is trained, for NOTE.
        other_run: what else is in the folder, "" for nothing.
    """

    words: tuple[str, ...]
    run: str
    devices: int
    finished: bool
    identity: dict[str, Any]
    other_run: str

    @property
    def text(self) -> str:
        """The command as typed into a shell in the repository."""
        return shlex.join(self.words)


def plan_stages(
    row: Row, data: str, *, trainer: str | None = None, seed: int | None = None, root: Path = ROOT
) -> list[Stage]:
    """The commands that train a row, in order: earlier steps and trunks first.

    Args:
        row: with a recipe.
        data: --data.
        trainer: config of another machine than the recipe's; the batch of a process is set so that the global batch
            stays.
        seed: in place of the recipe's, into folders of its own; None for the recipe as it is.
        root: folder that contains the folders of the runs.

    Raises:
        InputError: a row without a recipe, or a global batch that the processes of `trainer` cannot share.
    """
    if not row.recipe:
        raise InputError(f"row {row.name} has no recipe to train: nothing under configs/ trains {row.system}")
    parts = [(recipe, (), "") for recipe in row.before] + [(row.recipe, row.words, row.run)]
    renamed: dict[str, str] = {}
    planned: list[Stage] = []
    for recipe, words, row_run in parts:
        recipe_run = read_setting(recipe, "trainer.default_root_dir")
        run = row_run or recipe_run
        if seed is not None:
            run = f"{run}_seed{seed}"
        renamed[recipe_run] = run
        planned.append(_plan_stage(recipe, words, run, renamed, row, data, trainer, seed, root))
    return planned


def _plan_stage(
    recipe: tuple[str, ...],
    row_words: tuple[str, ...],
    run: str,
    renamed: dict[str, str],
    row: Row,
    data: str,
    trainer: str | None,
    seed: int | None,
    root: Path,
) -> Stage:
    """One command. renamed: folders of the recipes -> those of this row's runs."""
    words = ["python", "-m", f"tasks.{recipe[0].split('/')[1]}", "fit"]
    for config in (*recipe, trainer or row.trainer):
        words += ["--config", config]
    words += list(row_words)
    if trainer is not None and trainer != row.trainer:
        words = _share_batch(words, recipe, row.trainer, trainer)
    words += ["--data.root", _data_root(recipe, data)]
    if seed is not None:
        words += ["--seed_everything", str(seed)]
        start = read_setting(recipe, "model.weights")
        if start is not None:
            words += ["--model.weights", _move_file(start, renamed)]
        words = [_move_file(word, renamed) if word.endswith(".safetensors") else word for word in words]
    if run != read_setting(recipe, "trainer.default_root_dir"):
        logger = {"class_path": LOGGER, "init_args": {"save_dir": run, "name": "", "version": ""}}
        words += ["--trainer.default_root_dir", run, "--trainer.logger", json.dumps([logger])]
    identity = _identify(recipe, row_words, seed, trainer or row.trainer)
    checkpoint, finished = _find_checkpoint(root, run), _is_finished(root, run)
    other_run = _describe_other_run(root, run, identity) if finished or checkpoint else ""
    if checkpoint and not other_run:
        words += ["--ckpt_path", checkpoint]
    devices = _count_processes(words, trainer or row.trainer)
    return Stage(tuple(words), run, devices, finished and not other_run, identity, other_run)


def _identify(recipe: tuple[str, ...], words: tuple[str, ...], seed: int | None, trainer: str) -> dict[str, Any]:
    """What makes a run different from others on any machine: configs by content, words, seed, what `trainer` adds."""
    added = {
        part: {key: value for key, value in options.items() if key not in MACHINE.get(part, ())}
        for part, options in read_config(ROOT / trainer).items()
        if isinstance(options, dict)
    }
    return {
        "configs": digest_configs(ROOT, recipe),
        **{"words": list(words), "seed": seed, "added": {part: options for part, options in added.items() if options}},
    }


def _describe_other_run(root: Path, run: str, identity: dict[str, Any]) -> str:
    """The run in a folder with weights or checkpoints, "" if it is the run of this identity."""
    path = root / run / NOTE
    if not path.is_file():
        return f"a run that this command did not start (it has no {NOTE})"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"a run whose {NOTE} cannot be read ({error!r})"
    differing = list_differences(found, identity)
    return f"a run that differs in {differing}" if differing else ""


def _share_batch(words: list[str], recipe: tuple[str, ...], before: str, after: str) -> list[str]:
    """The words with the global batch of the recipe divided among the processes of another machine."""
    old, new = _count_processes(words, before), _read_processes(after)
    kept = list(words)
    if "--trainer.devices" in kept:  # the other config sets its number itself
        place = kept.index("--trainer.devices")
        del kept[place : place + 2]
    batch = read_setting(recipe, "data.batch_size") * old
    if batch % new:
        raise InputError(
            f"the {new} processes of {after} cannot share the global batch of {batch}: take another config"
        )
    return [*kept, "--data.batch_size", str(batch // new)]


def _count_processes(words: Sequence[str], trainer: str) -> int:
    if "--trainer.devices" in words:
        return int(words[list(words).index("--trainer.devices") + 1])
    return _read_processes(trainer)


def _read_processes(trainer: str) -> int:
    """Processes of a config of configs/trainer."""
    options = read_config(ROOT / trainer).get("trainer") or {}
    devices, nodes = options.get("devices", 1), options.get("num_nodes", 1)
    if type(devices) is not int or type(nodes) is not int:
        raise InputError(f"trainer.devices of {trainer} must be a number of processes, got {devices!r}: set it")
    return devices * nodes


def _data_root(recipe: tuple[str, ...], data: str) -> str:
    """The recipe's data.root, data/X, below --data."""
    root = read_setting(recipe, "data.root")
    first, _, rest = str(root).partition("/")
    if first != "data":
        raise InputError(f"data.root of recipe {recipe[0]} must be a folder below data, got {root!r}: correct it")
    return os.path.join(data, rest) if rest else data


def _move_file(path: str, renamed: dict[str, str]) -> str:
    """A file of an earlier stage, in the folder of that stage's run."""
    folder, _, name = path.rpartition("/")
    return f"{renamed.get(folder, folder)}/{name}"


def _find_checkpoint(root: Path, run: str) -> str | None:
    """The newest checkpoint to resume from."""
    names = [f"{run}/{below}{name}" for below in ("", "checkpoints/") for name in CHECKPOINTS]
    found = [name for name in names if (root / name).is_file()]
    return max(found, key=lambda name: (root / name).stat().st_mtime) if found else None


def _is_finished(root: Path, run: str) -> bool:
    return (root / run / "weights.safetensors").is_file()
