"""Proxies: base, ES and Rep of a system at equal operations, trained small on real data, several seeds each.

configs/proxy/SYSTEM.yaml says what is trained; a run is the task's own `fit` in a process of its own, under
OUT/SYSTEM/VARIANT-seedN. A run that ended is not trained again, one that was cut off goes on at its last checkpoint.
Its run.json says which run it is, from the start: another network, seed or config (by what it says) is refused there.
"""

import csv
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esbnn_core.checkpoint.catalogue import TASKS
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, write_atomically
from tasks.classification.datasets import dataset_info
from tasks.reproduce.modes.identity import apart, config_digests
from tasks.reproduce.modes.ops import row_cost
from tasks.reproduce.modes.proxy_data import missing_proxy_data
from tasks.reproduce.modes.proxy_rows import ProxyRow
from tasks.reproduce.tables.table import SYSTEMS, Row

FOLDER = ROOT / "configs" / "proxy"
LAST = "checkpoints/last.ckpt"
_COLUMNS = {"top1": "val_top1", "map_11point": "val_map_11point", "psnr": "val_psnr", "loss": "train_loss_epoch"}


@dataclass(frozen=True)
class Variant:
    """One network of a system: for classification a name and its options, otherwise what its configs and words say.

    epochs: where they are not those of the system.
    """

    name: str
    network: str
    options: Mapping[str, Any] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    epochs: int | None = None


@dataclass(frozen=True)
class Proxy:
    """What is trained for a system.

    Attributes:
        task, dataset, metric: metric is of the last validation. size: (C, H, W) that operations are counted for.
        configs: laid behind those of the variant. root: below --data, "." for --data itself, "" for data that comes
            with the repository.
        epochs: of training. seeds: default.
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

    def length(self, variant: Variant) -> float:
        """Epochs of a variant."""
        return self.epochs if variant.epochs is None else variant.epochs


def read_proxy_config(system: str, folder: Path | None = None) -> Proxy:
    """SYSTEM.yaml of a folder, default configs/proxy, read strictly.

    Raises:
        InputError: an unknown system; a file that is missing, no YAML or has keys or values that are not expected.
    """
    if system not in SYSTEMS:
        raise InputError(f"proxy system {system!r} is not known, one of {', '.join(SYSTEMS)} was expected")
    path = (folder or FOLDER) / f"{system}.yaml"
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        variants = tuple(
            Variant(name, **{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})
            for name, entry in body.pop("variants").items()
        )
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in body.items()}
        found = Proxy(system=system, variants=variants, **lists)
    except (OSError, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): restore the file") from error
    if found.task not in TASKS or found.metric not in _COLUMNS or len(found.size) != 3 or not found.seeds:
        raise InputError(
            f"{path} has task {found.task!r}, metric {found.metric!r}, size {list(found.size)} and {len(found.seeds)} "
            f"seeds: a task of {', '.join(TASKS)}, a metric of {', '.join(_COLUMNS)}, three numbers and seeds were "
            f"expected"
        )
    for name in (*found.configs, *(config for variant in variants for config in variant.configs)):
        if not (ROOT / name).is_file():
            raise InputError(f"{path} names the config {name}, which does not exist: correct the name")
    return found


def command(proxy: Proxy, variant: Variant, seed: int, run: Path, data: str) -> list[str]:
    """The words behind `python` that train one network; `data` is the folder that has proxy.root."""
    words = ["-m", f"tasks.{proxy.task}", "fit"]
    for config in (*variant.configs, *proxy.configs):
        words += ["--config", os.path.relpath(ROOT / config)]
    if proxy.task == "classification":
        words += ["--model.network", variant.network]
        if variant.options:
            words += ["--model.network_options", json.dumps(dict(variant.options))]
    if variant.epochs is not None:
        words += ["--trainer.max_epochs", str(variant.epochs)]
    words += variant.words
    if proxy.root:
        words += ["--data.root", os.path.normpath(os.path.join(data, proxy.root))]
    words += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(run)]
    return [*words, "--trainer.logger.init_args.save_dir", str(run)]


def run_proxy(
    system: str, out: Path, *, data: str, seeds: Sequence[int] | None = None, jobs: int = 1, only: Sequence[str] = ()
) -> list[ProxyRow]:
    """Train what is missing of a system and write OUT/SYSTEM.json, also before a failure is raised.

    Returns: a row for each variant that has a run, with every seed trained so far, by this call or by others.

    Args:
        out: folder of runs and results. data: folder that has the dataset. seeds: default those of the config.
        jobs: runs at a time; they share the cores. only: names of variants, default all.

    Raises:
        InputError: see read_proxy_config; an unknown variant; a run that failed, with what its log says last: no other
            is started then.
    """
    proxy = read_proxy_config(system)
    names = [variant.name for variant in proxy.variants]
    for name in only:
        if name not in names:
            raise InputError(f"proxy system {system} has no variant {name!r}: its variants are {', '.join(names)}")
    chosen = [variant for variant in proxy.variants if not only or variant.name in only]
    # seed by seed, so that all variants have been trained when a long run is cut off
    runs = [(variant, seed) for seed in (proxy.seeds if seeds is None else seeds) for variant in chosen]
    failed = threading.Event()

    def train(variant: Variant, seed: int) -> None:
        if not failed.is_set():
            try:
                _train(proxy, variant, seed, out, data, jobs)
            except BaseException:
                failed.set()
                raise

    try:
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            for _ in pool.map(lambda run: train(*run), runs):
                pass
    except (InputError, OSError):
        with suppress(InputError, OSError):  # what is to be told is why the run failed
            gather_proxy(system, out)
        raise
    return gather_proxy(system, out)


def gather_proxy(system: str, out: Path) -> list[ProxyRow]:
    """The rows of the runs that have ended, written to OUT/SYSTEM.json if there are any; nothing is trained.

    Raises:
        InputError: see read_proxy_config; a run.json that is damaged or of another run.
    """
    proxy = read_proxy_config(system)
    rows = [row for variant in proxy.variants if (row := _row(proxy, variant, out)) is not None]
    if rows:
        text = json.dumps([asdict(row) for row in rows], indent=2) + "\n"
        write_atomically(out / f"{system}.json", text.encode())
    return rows


def lacking(system: str, out: Path, *, data: str, seeds: Sequence[int] | None = None) -> str:
    """What data the runs of a system lack that have not ended, and how to get it; "" for nothing.

    Raises:
        InputError: see gather_proxy.
    """
    proxy = read_proxy_config(system)
    for variant in proxy.variants:
        for seed in proxy.seeds if seeds is None else seeds:
            if "value" not in _kept(proxy, variant, seed, _folder(proxy, variant, seed, out)):
                recipe = (*variant.configs, *proxy.configs)
                if told := missing_proxy_data(proxy.task, proxy.dataset, proxy.root, recipe, data):
                    return told
    return ""


def read_proxy(out: Path) -> list[ProxyRow]:
    """The rows of all systems that were trained under OUT, in the order of SYSTEMS. Raises InputError."""
    rows = []
    for system in SYSTEMS:
        path = out / f"{system}.json"
        if path.exists():
            try:
                rows += [ProxyRow(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
            except (ValueError, TypeError) as error:
                raise InputError(f"{path} is no list of proxy rows ({error}): train that system again") from error
    return rows


def _identity(proxy: Proxy, variant: Variant, seed: int) -> dict[str, Any]:
    """What makes a run this one, wherever it lies and however its paths are written: also what its configs say."""
    configs = (*variant.configs, *proxy.configs)
    whole = {
        **{"task": proxy.task, "metric": proxy.metric, "root": proxy.root, "network": variant.network},
        **{"options": dict(variant.options), "words": list(variant.words), "seed": seed},
        "epochs": proxy.length(variant),
        "configs": config_digests(ROOT, configs),
    }
    return dict(json.loads(json.dumps(whole)))  # as it is read back


def _kept(proxy: Proxy, variant: Variant, seed: int, run: Path) -> dict[str, Any]:
    """run.json of a run: "command" and "identity", with "value" and "seconds" once it has ended; {} of none.

    Raises:
        InputError: a file that is damaged or of another run, or a checkpoint that nothing is known of.
    """
    path = run / "run.json"
    if not path.exists():
        if (run / LAST).exists():
            raise InputError(f"{run} has a checkpoint and no run.json: it is another run, remove it or change --out")
        return {}
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told, met = kept["command"], kept["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): remove its folder, which trains that run anew") from error
    differing = apart(met, _identity(proxy, variant, seed))
    if differing and ("value" in kept or (run / LAST).exists()):
        raise InputError(f"{run} holds a run that differs in {differing} ({told}): remove it or change --out")
    return kept


def _folder(proxy: Proxy, variant: Variant, seed: int, out: Path) -> Path:
    return out / proxy.system / f"{variant.name.replace(' ', '_')}-seed{seed}"


def _train(proxy: Proxy, variant: Variant, seed: int, out: Path, data: str, jobs: int) -> None:
    """Run one `fit` unless it has ended, and write its run.json."""
    run = _folder(proxy, variant, seed, out)
    kept = _kept(proxy, variant, seed, run)
    if "value" in kept:
        return
    words = command(proxy, variant, seed, run, data)
    text = shlex.join(["python", *words])
    last = run / LAST
    more = ["--ckpt_path", str(last)] if last.exists() else []
    print(f"$ {text}{' ' + shlex.join(more) if more else ''}", flush=True)
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
    result: dict[str, Any] = {"command": text, "identity": _identity(proxy, variant, seed)}
    # before it starts: a run that is cut off is known by it
    write_atomically(run / "run.json", (json.dumps(result, indent=2) + "\n").encode())
    start = time.perf_counter()
    # run by run its own log: several at a time would mix their progress
    with (run / "log.txt").open("ab" if more else "wb") as log:
        begin = log.tell()
        done = subprocess.run([sys.executable, *words, *more], env=environment, stdout=log, stderr=log)
    if done.returncode:
        told = _said(run / "log.txt", begin)
        raise InputError(f"{text} ended with exit code {done.returncode}, its log {run / 'log.txt'} says: {told}")
    try:
        result["value"] = last_value(run / "metrics.csv", _COLUMNS[proxy.metric])
    except InputError:
        last.unlink(missing_ok=True)  # going on from there would measure nothing again
        raise
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(f"{variant.name} seed {seed}: {proxy.metric} {result['value']:.3f}, {result['seconds']} s", flush=True)
    write_atomically(run / "run.json", (json.dumps(result, indent=2) + "\n").encode())


def _said(log: Path, begin: int) -> str:
    """The last error that a log tells behind its first `begin` bytes, which are of earlier attempts; else its end."""
    lines = [line.strip() for line in log.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing"])[-1]


def last_value(metrics: Path, column: str) -> float:
    """The last value of a column of Lightning's metrics.csv. Raises InputError where there is none."""
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            values = [row[column] for row in csv.DictReader(file) if row.get(column)]
    except OSError as error:
        raise InputError(f"{metrics} cannot be read ({error}): train that run again") from error
    if not values:
        raise InputError(f"{metrics} has no value of {column}: the run was never validated, train it again")
    return float(values[-1])


def _row(proxy: Proxy, variant: Variant, out: Path) -> ProxyRow | None:
    """The runs of a variant that have ended, in the order of their seeds; None without any."""
    found: dict[int, dict[str, Any]] = {}
    for run in sorted(_folder(proxy, variant, 0, out).parent.glob("*-seed*")):
        seed = run.name.rpartition("-seed")[2]
        if seed.isdigit() and run == _folder(proxy, variant, int(seed), out):
            result = _kept(proxy, variant, int(seed), run)
            if "value" in result:
                found[int(seed)] = result
    if not found:
        return None
    options, seeds = dict(variant.options), sorted(found)
    if proxy.task == "classification":
        options["num_classes"] = dataset_info(proxy.dataset).classes
    cost = row_cost(
        Row(
            name=f"{proxy.system} {variant.name}",
            system=proxy.system,
            task=proxy.task,
            network=variant.network,
            options=options,
            recipe=(*variant.configs, *proxy.configs),
            size=proxy.size,
        )
    )
    return ProxyRow(
        system=proxy.system,
        variant=variant.name,
        network=variant.network,
        options=dict(variant.options),
        dataset=proxy.dataset,
        metric=proxy.metric,
        seeds=seeds,
        values=[found[seed]["value"] for seed in seeds],
        ops=cost.ops,
        params=cost.params,
        epochs=proxy.length(variant),
        seconds=sum(found[seed]["seconds"] for seed in seeds),
        command=found[seeds[0]]["command"],
    )
