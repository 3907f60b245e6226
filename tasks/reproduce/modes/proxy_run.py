"""One run of a proxy: its command, the identity by which it is recognised, its training and its result.

A run is the task's own `fit` in a process of its own, in OUT/SYSTEM/VARIANT-seedN. Its run.json is written before it
starts and says which run it is: one of another network, seed or config (compared by content) is refused.
"""

import csv
import json
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, Turn, child_environment, one_at_a_time, write_atomically
from esbnn_core.lit.children import run_child
from tasks.reproduce.modes.identity import digest_configs, list_differences
from tasks.reproduce.tables.proxies import METRIC_COLUMNS, Proxy, Variant

LAST = "checkpoints/last.ckpt"


@dataclass(frozen=True)
class ProxyRun:
    """A network and a seed, in a folder.

    Attributes:
        proxy: of the system.
        variant: of the proxy.
        seed: of the run.
        out: folder of all proxies.
    """

    proxy: Proxy
    variant: Variant
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.out / self.proxy.system / f"{self.variant.name.replace(' ', '_')}-seed{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run different from others: its settings and the content of its configs, without paths."""
        proxy, variant = self.proxy, self.variant
        identity = {
            **{"task": proxy.task, "metric": proxy.metric, "root": proxy.root, "network": variant.network},
            **{"options": dict(variant.options), "words": variant.all_words, "seed": self.seed},
            "epochs": proxy.epochs_of(variant),
            "configs": digest_configs(ROOT, proxy.recipe_of(variant)),
        }
        return dict(json.loads(json.dumps(identity)))  # as it is read back

    def command(self, data: str) -> list[str]:
        """The words after `python` that train the network. data: the folder that has proxy.root."""
        return fit_command(self.proxy, self.variant, self.seed, self.folder, data)


def fit_command(proxy: Proxy, variant: Variant, seed: int, folder: Path, data: str) -> list[str]:
    """The words after `python` that train one network.

    Args:
        proxy: of the system.
        variant: of the proxy.
        seed: of the run.
        folder: of the run.
        data: the folder that has proxy.root.
    """
    words = ["-m", f"tasks.{proxy.task}", "fit"]
    for config in proxy.recipe_of(variant):
        words += ["--config", os.path.relpath(ROOT / config)]
    if proxy.task == "classification":
        words += ["--model.network", variant.network]
        if variant.options:
            words += ["--model.network_options", json.dumps(dict(variant.options))]
    if variant.epochs is not None:
        words += ["--trainer.max_epochs", str(variant.epochs)]
    words += variant.all_words
    if proxy.root:
        words += ["--data.root", os.path.normpath(os.path.join(data, proxy.root))]
    words += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
    return [*words, "--trainer.logger.init_args.save_dir", str(folder)]


def read_record(run: ProxyRun) -> dict[str, Any]:
    """run.json of a run: "command" and "identity", with "value" and "seconds" once it has ended; {} without any.

    Raises:
        InputError: a file that is damaged or of another run, or a checkpoint without a run.json.
    """
    path = run.folder / "run.json"
    if not path.exists():
        if (run.folder / LAST).exists():
            raise InputError(f"{run.folder} has a checkpoint but no run.json: remove this other run or change --out")
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        command, identity = record["command"], record["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): remove its folder to train that run again") from error
    differing = list_differences(identity, run.identity)
    if differing and ("value" in record or (run.folder / LAST).exists()):
        raise InputError(f"{run.folder} holds a run that differs in {differing} ({command}): remove it or change --out")
    return record


def train_run(run: ProxyRun, data: str, jobs: int) -> None:
    """Run one `fit` unless it has ended, from its last checkpoint if there is one, and write its run.json.

    Args:
        run: which.
        data: the folder that has the root of the proxy.
        jobs: runs at a time, which share the cores.

    Raises:
        InputError: see read_record; a `fit` that failed, with the last error of its log, or that measured nothing;
            another process that trains this run.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(run.folder, patience=0) as turn:
        if not turn:
            raise InputError(f"{run.folder} is being trained by another process: wait for it or change --out")
        if "value" not in read_record(run):
            _train(run, data, jobs, turn)


def _train(run: ProxyRun, data: str, jobs: int, turn: Turn) -> None:
    words, last, log_file = run.command(data), run.folder / LAST, run.folder / "log.txt"
    text = shlex.join(["python", *words])
    resume = ["--ckpt_path", str(last)] if last.exists() else []
    print(f"$ {text}{' ' + shlex.join(resume) if resume else ''}", flush=True)
    record: dict[str, Any] = {"command": text, "identity": run.identity}
    # before it starts: a run that is cut off is recognised by it
    write_atomically(run.folder / "run.json", (json.dumps(record, indent=2) + "\n").encode())
    start = time.perf_counter()
    run_logged(text, [*words, *resume], log_file, jobs, append=bool(resume), turn=turn)
    metric = run.proxy.metric
    try:
        record["value"] = read_last_value(run.folder / "metrics.csv", METRIC_COLUMNS[metric])
    except InputError:
        last.unlink(missing_ok=True)  # a run resumed from there would measure nothing again
        raise
    record["seconds"] = round(time.perf_counter() - start, 1)
    print(f"{run.variant.name} seed {run.seed}: {metric} {record['value']:.3f}, {record['seconds']} s", flush=True)
    write_atomically(run.folder / "run.json", (json.dumps(record, indent=2) + "\n").encode())


def run_logged(
    text: str,
    words: list[str],
    log_file: Path,
    jobs: int,
    *,
    append: bool = False,
    folder: Path | None = None,
    turn: Turn | None = None,
) -> None:
    """Run `python WORDS` with its share of the cores and its output in a log of its own.

    Args:
        text: the command, for the error.
        words: after `python`.
        log_file: several runs at a time would mix their progress in one.
        jobs: runs at a time.
        append: keep what the log has.
        folder: that it runs in, default this one.
        turn: as run_child's.

    Raises:
        InputError: another exit code than 0, with the last error of the log.
    """
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    environment = {"OMP_NUM_THREADS": str(threads), **child_environment()}
    with log_file.open("ab" if append else "wb") as log:
        begin = log.tell()
        code = run_child(words, env=environment, cwd=folder, log=log, turn=turn)
    if code:
        error = read_error(log_file, begin)
        raise InputError(f"{text} ended with exit code {code}, its log {log_file} says: {error}")


def read_error(log: Path, begin: int) -> str:
    """The last error in a log, else its last line; the first `begin` bytes are of earlier attempts."""
    lines = [line.strip() for line in log.read_bytes()[begin:].decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing"])[-1]


def read_last_value(metrics: Path, column: str) -> float:
    """The last value of a column of Lightning's metrics.csv. Raises InputError without any."""
    try:
        with metrics.open(encoding="utf-8", newline="") as file:
            values = [record[column] for record in csv.DictReader(file) if record.get(column)]
    except OSError as error:
        raise InputError(f"{metrics} cannot be read ({error}): train that run again") from error
    if not values:
        raise InputError(f"{metrics} has no value of {column}: the run was never validated, train it again")
    return float(values[-1])
