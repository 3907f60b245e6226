"""--mode train: the exact command lines of a row's recipe, one after another, resumed where a run has stopped."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, write_atomically
from tasks.reproduce.modes.identity import apart, config_digests
from tasks.reproduce.modes.ops import read_config, setting
from tasks.reproduce.tables.table import Row

CHECKPOINTS = ("last.ckpt", "recent.ckpt")
LOGGER = "lightning.pytorch.loggers.CSVLogger"
NOTE = "reproduce.json"
"""In the folder of a run, from its start: which command of which recipe it is."""
MACHINE = {
    "trainer": {"accelerator", "devices", "num_nodes", "strategy", "precision", "log_every_n_steps", "sync_batchnorm"},
    "model": {"channels_last", "compile_backend"},
    "data": {"batch_size", "num_workers", "on_device"},
}
"""What another machine's config may say of a run that goes on there."""


@dataclass(frozen=True)
class Stage:
    """One command of a row.

    Attributes:
        words: "python", "-m", ... ; run: folder that it writes, below the repository. devices: GPUs it asks for.
        finished: its weights are there. identity: what is trained, for NOTE. another: what else lies in the folder, ""
            for nothing.
    """

    words: tuple[str, ...]
    run: str
    devices: int
    finished: bool
    identity: dict[str, Any]
    another: str

    @property
    def text(self) -> str:
        """As typed into a shell in the repository."""
        return shlex.join(self.words)


def stages(
    row: Row, data: str, *, trainer: str | None = None, seed: int | None = None, root: Path = ROOT
) -> list[Stage]:
    """The commands that train a row, in order: earlier steps and trunks first.

    Args:
        data: --data. trainer: a config of another machine than the recipe's; the global batch stays, the batch of a
            process is set so. seed: in place of the recipe's, into folders of its own; None is the recipe as it stands.
        root: where the folders of the runs lie.

    Raises:
        InputError: a row without a recipe, or a global batch that the processes of `trainer` cannot share.
    """
    if not row.recipe:
        raise InputError(f"row {row.name} has no recipe to train: nothing under configs/ trains {row.system}")
    parts = [(recipe, (), "") for recipe in row.before] + [(row.recipe, row.words, row.run)]
    renamed: dict[str, str] = {}
    made: list[Stage] = []
    for recipe, words, own in parts:
        written = setting(recipe, "trainer.default_root_dir")
        run = own or written
        if seed is not None:
            run = f"{run}_seed{seed}"
        renamed[written] = run
        made.append(_stage(recipe, words, run, written, renamed, row, data, trainer, seed, root))
    return made


def _stage(
    recipe: tuple[str, ...],
    own: tuple[str, ...],
    run: str,
    written: str,
    renamed: dict[str, str],
    row: Row,
    data: str,
    trainer: str | None,
    seed: int | None,
    root: Path,
) -> Stage:
    """One command; renamed: folders of the recipes -> those of this row's runs."""
    words = ["python", "-m", f"tasks.{recipe[0].split('/')[1]}", "fit"]
    for config in (*recipe, trainer or row.trainer):
        words += ["--config", config]
    words += list(own)
    if trainer is not None and trainer != row.trainer:
        words = _other_machine(words, recipe, row.trainer, trainer)
    words += ["--data.root", _data_root(recipe, data)]
    if seed is not None:
        words += ["--seed_everything", str(seed)]
        start = setting(recipe, "model.weights")
        if start is not None:
            words += ["--model.weights", _moved(start, renamed)]
        words = [_moved(word, renamed) if word.endswith(".safetensors") else word for word in words]
    if run != written:
        logger = {"class_path": LOGGER, "init_args": {"save_dir": run, "name": "", "version": ""}}
        words += ["--trainer.default_root_dir", run, "--trainer.logger", json.dumps([logger])]
    identity = _identity(recipe, own, seed, trainer or row.trainer)
    checkpoint, finished = _newest(root, run), _finished(root, run)
    another = _another(root, run, identity) if finished or checkpoint else ""
    if checkpoint and not another:
        words += ["--ckpt_path", checkpoint]
    devices = _processes(words, trainer or row.trainer)
    return Stage(tuple(words), run, devices, finished and not another, identity, another)


def _identity(recipe: tuple[str, ...], own: tuple[str, ...], seed: int | None, trainer: str) -> dict[str, Any]:
    """What makes a run this one, on whatever machine: its configs by content, words, seed, and what `trainer` adds."""
    added = {
        part: {key: value for key, value in options.items() if key not in MACHINE.get(part, ())}
        for part, options in read_config(ROOT / trainer).items()
        if isinstance(options, dict)
    }
    return {
        "configs": config_digests(ROOT, recipe),
        **{"words": list(own), "seed": seed, "added": {part: options for part, options in added.items() if options}},
    }


def _another(root: Path, run: str, identity: dict[str, Any]) -> str:
    """What a folder with weights or checkpoints holds, if that is not the run of this identity."""
    path = root / run / NOTE
    if not path.is_file():
        return f"a run that this command did not start (it has no {NOTE})"
    try:
        met = json.loads(path.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"a run whose {NOTE} cannot be read ({error!r})"
    differing = apart(met, identity)
    return f"a run that differs in {differing}" if differing else ""


def _other_machine(words: list[str], recipe: tuple[str, ...], before: str, after: str) -> list[str]:
    """The words with the global batch of the recipe shared by the processes of another machine."""
    old, new = _processes(words, before), _devices(after)
    kept = list(words)
    if "--trainer.devices" in kept:  # the other config says itself how many there are
        place = kept.index("--trainer.devices")
        del kept[place : place + 2]
    batch = setting(recipe, "data.batch_size") * old
    if batch % new:
        raise InputError(
            f"the {new} processes of {after} cannot share the global batch of {batch}: take another config"
        )
    return [*kept, "--data.batch_size", str(batch // new)]


def _processes(words: Sequence[str], trainer: str) -> int:
    if "--trainer.devices" in words:
        return int(words[list(words).index("--trainer.devices") + 1])
    return _devices(trainer)


def _devices(trainer: str) -> int:
    """Processes of a config of configs/trainer."""
    options = read_config(ROOT / trainer).get("trainer") or {}
    devices, nodes = options.get("devices", 1), options.get("num_nodes", 1)
    if type(devices) is not int or type(nodes) is not int:
        raise InputError(f"config {trainer} has devices {devices!r}, a number of processes was expected: set it")
    return devices * nodes


def _data_root(recipe: tuple[str, ...], data: str) -> str:
    """The recipe's data.root, data/X, below --data."""
    written = setting(recipe, "data.root")
    first, _, rest = str(written).partition("/")
    if first != "data":
        raise InputError(f"recipe {recipe[0]} has data.root {written!r}, a folder below data was expected: correct it")
    return os.path.join(data, rest) if rest else data


def _moved(path: str, renamed: dict[str, str]) -> str:
    """A file of an earlier stage, in the folder that the stage has here."""
    folder, _, name = path.rpartition("/")
    return f"{renamed.get(folder, folder)}/{name}"


def _newest(root: Path, run: str) -> str | None:
    """The newest checkpoint to go on from."""
    places = [f"{run}/{below}{name}" for below in ("", "checkpoints/") for name in CHECKPOINTS]
    found = [place for place in places if (root / place).is_file()]
    return max(found, key=lambda place: (root / place).stat().st_mtime) if found else None


def _finished(root: Path, run: str) -> bool:
    return (root / run / "weights.safetensors").is_file()


def train(rows: Sequence[Row], data: str, *, trainer: str | None, seeds: Sequence[int] | None, dry_run: bool) -> None:
    """Print and run the commands of the rows; dry_run prints alone. What is finished is left as it is.

    Raises:
        InputError: a row without a recipe, GPUs that are not there, a folder of another run, or a command that failed.
    """
    seen: set[str] = set()
    for row, seed in _planned(rows, seeds):
        # built anew before each command: the one before it may have written what the next one starts from
        for number in range(len(row.before) + 1):
            stage = stages(row, data, trainer=trainer, seed=seed)[number]
            if stage.run in seen:
                continue
            seen.add(stage.run)
            if stage.another:
                told = f"{stage.run} holds {stage.another}: move it away"
                if not dry_run:
                    raise InputError(told)
                print(f"# {told}")
            if stage.finished:
                print(f"# {stage.run} has weights.safetensors and is finished; remove the folder to train anew")
                if not dry_run:
                    continue
            print(stage.text, flush=True)
            if not dry_run:
                _check_machine(stage, trainer or row.trainer)
                note = {"command": stage.text, "identity": stage.identity}
                write_atomically(ROOT / stage.run / NOTE, (json.dumps(note, indent=2) + "\n").encode())
                _run(stage)


def _planned(rows: Sequence[Row], seeds: Sequence[int] | None) -> Iterator[tuple[Row, int | None]]:
    for row in rows:
        for seed in [None] if seeds is None else seeds:
            yield row, seed


def _check_machine(stage: Stage, trainer: str) -> None:
    options = read_config(ROOT / trainer).get("trainer") or {}
    here = torch.cuda.device_count()
    nodes = options.get("num_nodes", 1)
    if options.get("accelerator") == "gpu" and here < stage.devices // nodes:
        asked = stage.devices // nodes
        smaller = ("configs/trainer/gpu1.yaml or " if here else "") + "configs/trainer/cpu.yaml"
        raise InputError(
            f"the recipe of {stage.run} is written for {asked} GPU{'' if asked == 1 else 's'} a machine and torch sees "
            f"{here}: give --trainer {smaller}, which keeps the global batch"
        )


def _run(stage: Stage) -> None:
    code = subprocess.run([sys.executable, *stage.words[1:]], cwd=ROOT).returncode
    if code:
        raise InputError(
            f"the run into {stage.run} ended with exit code {code}, what it said stands above: correct that and give "
            f"the same command again, which goes on from its last checkpoint"
        )
