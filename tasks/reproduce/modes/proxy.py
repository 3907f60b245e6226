"""--mode proxy: base, ES and Rep of a system at equal operations, trained small on real data over several seeds.

configs/proxy/SYSTEM.yaml says what is trained. A run that has ended is not trained again, one that was cut off goes on
from its last checkpoint.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from esbnn_core.errors import InputError
from esbnn_core.files import write_atomically
from tasks.classification.datasets import dataset_info
from tasks.reproduce.modes.ops import count_row
from tasks.reproduce.modes.proxy_data import describe_missing_proxy_data
from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.modes.proxy_run import ProxyRun, read_record, train_run
from tasks.reproduce.tables.configs import read_setting
from tasks.reproduce.tables.proxies import Proxy, Variant, read_proxy_config
from tasks.reproduce.tables.table import SYSTEMS, Row


def run_proxy(
    system: str, out: Path, *, data: str, seeds: Sequence[int] | None = None, jobs: int = 1, only: Sequence[str] = ()
) -> list[ProxyResult]:
    """Train what is missing of a system and write OUT/SYSTEM.json, also before a failure is raised.

    Args:
        system: of SYSTEMS.
        out: folder of runs and results.
        data: folder that has the data set.
        seeds: by default those of the config.
        jobs: runs at a time, which share the cores.
        only: names of variants, by default all.

    Returns:
        A result for each variant that has a run, with every seed trained so far, now or earlier.

    Raises:
        InputError: see read_proxy_config; an unknown variant; a run that failed, with the last error of its log. No
            other run is started after a failure.
    """
    proxy, chosen = read_proxy_config(system), chosen_variants(system, only)
    # seed by seed, so that all variants have a result when a long training is cut off
    runs = [ProxyRun(proxy, variant, seed, out) for seed in _seeds_of(proxy, seeds) for variant in chosen]
    failed = threading.Event()

    def train(run: ProxyRun) -> None:
        if not failed.is_set():
            try:
                train_run(run, data, jobs)
            except BaseException:
                failed.set()
                raise

    try:
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            for _ in pool.map(train, runs):
                pass
    except (InputError, OSError):
        with suppress(InputError, OSError):  # the reason of the failed run comes first
            gather_proxy(system, out)
        raise
    return gather_proxy(system, out)


def gather_proxy(system: str, out: Path) -> list[ProxyResult]:
    """The results of the runs that have ended, written to OUT/SYSTEM.json if there are any; nothing is trained.

    Raises:
        InputError: see read_proxy_config; a run.json that is damaged or of another run.
    """
    proxy = read_proxy_config(system)
    results = [found for variant in proxy.variants if (found := _gather_variant(proxy, variant, out)) is not None]
    if results:
        text = json.dumps([asdict(result) for result in results], indent=2) + "\n"
        write_atomically(out / f"{system}.json", text.encode())
    return results


def chosen_variants(system: str, only: Sequence[str]) -> list[Variant]:
    """The variants of these names, all without any. Raises InputError: an unknown name; see read_proxy_config."""
    variants = read_proxy_config(system).variants
    names = [variant.name for variant in variants]
    for name in only:
        if name not in names:
            raise InputError(f"proxy system {system} has no variant {name!r}: its variants are {', '.join(names)}")
    return [variant for variant in variants if not only or variant.name in only]


def describe_lacking(
    system: str, out: Path, *, data: str, seeds: Sequence[int] | None = None, only: Sequence[str] = ()
) -> str:
    """A sentence about what the unfinished runs of a system lack, data or a GPU; "" if nothing is missing.

    Args:
        system: as run_proxy, like the rest.
        out: folder of runs and results.
        data: folder that has the data set.
        seeds: by default those of the config.
        only: names of variants, by default all.

    Raises:
        InputError: see gather_proxy.
    """
    proxy = read_proxy_config(system)
    for variant in chosen_variants(system, only):
        for seed in _seeds_of(proxy, seeds):
            if "value" not in read_record(ProxyRun(proxy, variant, seed, out)):
                recipe = proxy.recipe_of(variant)
                if missing := describe_missing_proxy_data(proxy.task, proxy.dataset, proxy.root, recipe, data):
                    return missing
                if read_setting(recipe, "trainer.accelerator") == "gpu" and not torch.cuda.is_available():
                    return f"trainer.accelerator of {recipe[-1]} is gpu, and this machine has none"
    return ""


def read_proxy_results(out: Path) -> list[ProxyResult]:
    """The results of all systems that were trained below a folder, in the order of SYSTEMS. Raises InputError."""
    results = []
    for system in SYSTEMS:
        path = out / f"{system}.json"
        if path.exists():
            try:
                results += [ProxyResult(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{path} must be a list of proxy results, got {error}: train that system again"
                ) from error
    return results


def _seeds_of(proxy: Proxy, seeds: Sequence[int] | None) -> Sequence[int]:
    return proxy.seeds if seeds is None else seeds


def _gather_variant(proxy: Proxy, variant: Variant, out: Path) -> ProxyResult | None:
    """The runs of a variant that have ended, in the order of their seeds; None without any."""
    records: dict[int, dict[str, Any]] = {}
    for folder in sorted((out / proxy.system).glob("*-seed*")):
        seed = folder.name.rpartition("-seed")[2]
        if seed.isdigit() and folder == (run := ProxyRun(proxy, variant, int(seed), out)).folder:
            record = read_record(run)
            if "value" in record:
                records[int(seed)] = record
    if not records:
        return None
    options, seeds = dict(variant.options), sorted(records)
    if proxy.task == "classification":
        options["num_classes"] = dataset_info(proxy.dataset).classes
    cost = count_row(
        Row(
            name=f"{proxy.system} {variant.name}",
            system=proxy.system,
            task=proxy.task,
            network=variant.network,
            options=options,
            recipe=proxy.recipe_of(variant),
            size=proxy.size,
        )
    )
    return ProxyResult(
        system=proxy.system,
        variant=variant.name,
        network=variant.network,
        options=dict(variant.options),
        dataset=proxy.dataset,
        metric=proxy.metric,
        seeds=seeds,
        values=[records[seed]["value"] for seed in seeds],
        ops=cost.ops,
        params=cost.params,
        epochs=proxy.epochs_of(variant),
        seconds=sum(records[seed]["seconds"] for seed in seeds),
        command=records[seeds[0]]["command"],
    )
