"""configs/proxy/SYSTEM.yaml: which small networks stand in for a system and how they are trained, read strictly."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esbnn_core.checkpoint.catalogue import TASKS
from esbnn_core.errors import InputError, check_choice
from esbnn_core.files import ROOT
from esbnn_core.lit.recipes import LOADER
from tasks.reproduce.tables.table import SYSTEMS

FOLDER = ROOT / "configs" / "proxy"
METRIC_COLUMNS = {"top1": "val_top1", "map_11point": "val_map_11point", "psnr": "val_psnr", "loss": "train_loss_epoch"}
"""Metric of a proxy -> its column of metrics.csv."""


@dataclass(frozen=True)
class Variant:
    """One network of a system.

    Attributes:
        name: unique in the system.
        network: a name for create_model in classification, a label for the other tasks.
        options: of the network, for create_model in classification.
        configs: read before those of the system.
        words: further words of the command.
        epochs: if not those of the system.
        start: arguments of esbnn_core.lit.start.StartApart, empty for the papers' start.
    """

    name: str
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    epochs: int | None = None
    start: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_words(self) -> list[str]:
        """`words`, and those that add the callback of `start`."""
        if not self.start:
            return list(self.words)
        callback = ["--trainer.callbacks+=esbnn_core.lit.start.StartApart"]
        arguments = [
            f"--trainer.callbacks.{key}={json.dumps(value).strip(chr(34))}" for key, value in self.start.items()
        ]
        return [*self.words, *callback, *arguments]


@dataclass(frozen=True)
class Proxy:
    """What is trained for a system.

    Attributes:
        system: of SYSTEMS.
        task: of TASKS.
        dataset: for classification a name of the task, otherwise for people.
        metric: of METRIC_COLUMNS, taken from the last validation.
        size: (C, H, W) that operations are counted at.
        configs: read after those of the variant.
        epochs: of training.
        seeds: trained by default.
        variants: the networks.
        root: folder below --data, "." for --data itself, "" for data that comes with the repository.
    """

    system: str
    task: str
    dataset: str
    metric: str
    size: tuple[int, int, int]
    configs: tuple[str, ...]
    epochs: float
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    root: str = ""

    def epochs_of(self, variant: Variant) -> float:
        """Epochs that a variant is trained for."""
        return self.epochs if variant.epochs is None else variant.epochs

    def recipe_of(self, variant: Variant) -> tuple[str, ...]:
        """All configs of a variant, the later over the earlier."""
        return (*variant.configs, *self.configs)


def read_proxy_config(system: str, folder: Path | None = None) -> Proxy:
    """Read and check SYSTEM.yaml of a folder, by default configs/proxy.

    Raises:
        InputError: an unknown system; a file that is missing, is not YAML or has unexpected keys or values.
    """
    check_choice("proxy system", system, SYSTEMS)
    path = (folder or FOLDER) / f"{system}.yaml"
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
        variants = tuple(Variant(name, **_freeze_lists(entry)) for name, entry in body.pop("variants").items())
        proxy = Proxy(system=system, variants=variants, **_freeze_lists(body))
    except (OSError, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): restore the file") from error
    check_choice(f"{path}: task", proxy.task, TASKS)
    check_choice(f"{path}: metric", proxy.metric, METRIC_COLUMNS)
    if len(proxy.size) != 3 or not proxy.seeds:
        raise InputError(
            f"{path}: size must be three numbers and seeds must not be empty, got {list(proxy.size)} and "
            f"{len(proxy.seeds)} seeds"
        )
    for name in (*proxy.configs, *(config for variant in variants for config in variant.configs)):
        if not (ROOT / name).is_file():
            raise InputError(f"{path} names the config {name}, which does not exist: correct the name")
    return proxy


def _freeze_lists(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}
