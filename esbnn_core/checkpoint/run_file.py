"""The checkpoint of a run (best.ckpt, last.ckpt), read without Lightning: its tensors, and what built its module.

A task's command line notes in each checkpoint, under RUN, the class of its module and the validation metrics, and under
Lightning's own key of hyper-parameters the options that built the module. `esbnn export` starts from these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from esbnn_core.checkpoint.format import is_dense
from esbnn_core.checkpoint.torch_file import load_torch_file
from esbnn_core.errors import InputError

RUN = "esbnn"
"""Key of what this project notes in the checkpoint of a run: module, metric, commit."""
OPTIONS = "hyper_parameters"
"""Lightning's key of the options that built the module."""
NETWORK = "network."
"""Prefix of the network's tensors in the state of a task's module."""
IMPORTED = "tasks."
"""Where `esbnn export` imports a module's class from: a file must not choose any other code to run."""


@dataclass(frozen=True)
class RunFile:
    """What the checkpoint of a run holds of its network.

    Attributes:
        path: of the file.
        tensors: of the network, by its own names, on the CPU.
        module: dotted name of the module's class, "" for a run that a task's command line did not start.
        options: that built the module.
        metric: of the last validation before the file was written.
        commit: of the source tree that trained, None where it is not noted.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    module: str
    options: Mapping[str, Any]
    metric: Mapping[str, float]
    commit: str | None


@runtime_checkable
class ExportsRuns(Protocol):
    """The class of a module whose runs can be exported."""

    def export_run(self, source: str | Path | RunFile, folder: str | Path) -> list[str]:
        """Write the network of a run's checkpoint as files into a new folder; returns a phrase on each."""


def read_run(path: str | Path, name: str = "checkpoint") -> RunFile:
    """Read the checkpoint of a run, with tensors and plain containers alone.

    Args:
        path: of the file.
        name: what the file was given as, for errors.

    Raises:
        InputError: a file that is missing, damaged or something other than the checkpoint of a run.
    """
    found = load_run(path, name)
    noted, state = found.get(RUN), run_state(found, path, name)
    noted = noted if isinstance(noted, dict) else {}
    tensors = {key.removeprefix(NETWORK): value for key, value in state.items() if key.startswith(NETWORK)}
    if not tensors:
        raise InputError(f"{name} {path} must be of a task's run, got one without tensors of a network: give another")
    options, metric, commit = found.get(OPTIONS), noted.get("metric"), noted.get("commit")
    return RunFile(
        Path(path),
        tensors,
        str(noted.get("module", "")),
        {key: value for key, value in options.items() if key != "_instantiator"} if isinstance(options, dict) else {},
        {str(key): float(value) for key, value in metric.items()} if isinstance(metric, dict) else {},
        commit if isinstance(commit, str) else None,
    )


def load_run(path: str | Path, name: str) -> Mapping[str, Any]:
    """What torch.load reads from the checkpoint of a run; arguments and errors as read_run's."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"checkpoint {path} does not exist: check {'the path' if name == 'checkpoint' else name}")
    if path.is_dir():
        if (path / "model_index.json").exists():
            raise InputError(f"{name} must be the checkpoint of a run, got the pipeline {path}: give last.ckpt")
        raise InputError(f"{name} must be one file of a run, got the folder {path}: give checkpoints/last.ckpt in it")
    if not path.is_file():
        raise InputError(f"{name} must be one file of a run, got the device or pipe {path}: give last.ckpt")
    if path.suffix == ".safetensors":
        raise InputError(f"{name} must be the checkpoint of a run, got the weights file {path}: {_WEIGHTS[name]}")
    found = load_torch_file(path, "checkpoint", f"give another one as {name}")
    if not isinstance(found, dict) or "pytorch-lightning_version" not in found:
        raise InputError(
            f"{name} must be the checkpoint of a run, got {path}, which holds other things: an official file is given "
            f"as model.weights"
        )
    return found


def run_state(found: Mapping[str, Any], path: str | Path, name: str) -> Mapping[str, Tensor]:
    """The module's tensors in what load_run read. Raises InputError for anything but dense tensors by name."""
    state = found.get("state_dict")
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and is_dense(value) and not value.is_meta for key, value in state.items()
    ):
        raise InputError(f"checkpoint {path} must hold a state_dict of dense tensors: give another one as {name}")
    return state


_WEIGHTS = {"ckpt_path": "give it as model.weights", "checkpoint": "esbnn pack makes bits of it"}


def check_options(run: RunFile) -> None:
    """Raise InputError unless the file says what built its network."""
    if not run.module or not run.options:
        raise InputError(
            f"checkpoint {run.path} does not say which options built its network, because no command line of a task "
            f"wrote it: load it in Python and call save_checkpoint"
        )


def find_exporter(run: RunFile) -> ExportsRuns:
    """The class of the module that wrote the file.

    Raises:
        InputError: a file that does not name one, or one that is not of this project's tasks or cannot be imported.
    """
    check_options(run)
    module, _, name = run.module.rpartition(".")
    if not module.startswith(IMPORTED):
        raise InputError(
            f"checkpoint {run.path} must be of a module in {IMPORTED.rstrip('.')}, got {run.module[:80]}: call its "
            f"export_run in Python"
        )
    try:
        found: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"module {run.module} of checkpoint {run.path} cannot be imported ({error}): run in a checkout of the "
            f"repository with the extras of its task"
        ) from error
    if not isinstance(found, ExportsRuns):
        raise InputError(f"checkpoint {run.path} must name the class of a task's module, got {run.module[:80]}")
    return found
