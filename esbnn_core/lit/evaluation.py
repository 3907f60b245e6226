"""Test a file with the config of its task: module and data as the command line builds them, without output."""

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from esbnn_core.checkpoint.format import stored_dtypes
from esbnn_core.errors import InputError
from esbnn_core.files import below_repository
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.lit.refusals import ends_as_signalled
from esbnn_core.packed.layers import is_packed
from esbnn_core.transforms.pack import pack_


def run_test(
    module: type[L.LightningModule],
    data: type[L.LightningDataModule],
    path: str | Path,
    config: str | Path,
    options: Mapping[str, Any],
    *,
    backend: str = "auto",
    device: str = "cpu",
    links: Sequence[str] = ("num_classes",),
) -> tuple[Any, float]:
    """Build the module of a config around a weights file and run Trainer.test.

    Logger, callbacks and distribution of the config are left out: one process tests and writes nothing. A file in
    float64 runs in float64.

    Args:
        module: class of the task's module.
        data: class of its data module.
        path: `weights` of the module.
        config: a recipe of the task, as below_repository finds it.
        options: override the config, by dotted name.
        backend: "auto" is what the file holds; "packed" packs a latent one.
        device: "cpu" or "cuda".
        links: as TaskCLI's.

    Returns:
        The module, and the seconds of the test.

    Raises:
        InputError: a config, file, option or data set that does not fit; "latent" of a packed file.
    """
    config = below_repository(config)
    if not config.is_file():
        raise InputError(f"config {config} does not exist: check the path")
    if Path(path).suffix == ".safetensors" and Path(path).is_file() and "F64" in stored_dtypes(Path(path)):
        options = {**options, "trainer.precision": "64-true"}
    overrides: dict[str, Any] = {
        "model.weights": str(path),
        **options,
        **{"trainer.accelerator": "gpu" if device == "cuda" else "cpu", "trainer.devices": 1, "trainer.num_nodes": 1},
        **{"trainer.strategy": "auto", "trainer.logger": False, "trainer.callbacks": None},
        **{"trainer.enable_checkpointing": False, "trainer.enable_model_summary": False},
        "trainer.enable_progress_bar": sys.stderr.isatty(),
    }
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in overrides.items()]
    with warnings.catch_warnings():
        # it warns because the arguments are not those of the process, which belong to another command
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter")
        cli = TaskCLI(
            module,
            data,
            links=links,
            args=["--config", str(config), *words],
            run=False,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            save_config_callback=None,
        )
    network = cli.model.network
    if is_packed(network) and backend == "latent":
        raise InputError(f"{path} is packed and holds no latent weights: use --backend packed")
    if backend == "packed" and not is_packed(network):
        pack_(network.eval())
    start = time.perf_counter()
    with ends_as_signalled():
        cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return cli.model, time.perf_counter() - start
