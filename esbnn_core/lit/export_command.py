"""The command that writes a trained network of a task as an ONNX file: its recipe and weights in, one file out."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from esbnn_core.errors import refuse
from esbnn_core.lit.cli import TaskCLI
from esbnn_core.lit.refusals import sentence
from esbnn_core.packed.layers import is_packed
from esbnn_core.transforms.pack import pack_


def build_module(
    module: type[L.LightningModule],
    data: type[L.LightningDataModule],
    args: Sequence[str],
    *,
    links: Sequence[str] = ("num_classes",),
) -> L.LightningModule:
    """The module that `test` would run with these words, which are those of the command line without a subcommand.

    Nothing is run and no data is read.

    Args:
        module: class of the task's module.
        data: class of its data module.
        args: words, e.g. ["--config", "recipe.yaml", "--model.weights", "packed.safetensors"].
        links: as TaskCLI's.

    Raises:
        InputError: what the module refuses; SystemExit for words that the parser refuses.
    """
    cli = TaskCLI(
        module,
        data,
        links=links,
        args=list(args),
        run=False,
        seed_everything_default=0,
        parser_kwargs={"allow_abbrev": False},
        trainer_defaults={"use_distributed_sampler": False, "logger": False},
        save_config_callback=None,
    )
    built: L.LightningModule = cli.model
    return built


def export_command(
    module: type[L.LightningModule],
    data: type[L.LightningDataModule],
    write: Callable[[Any, Path, argparse.Namespace], object],
    args: Sequence[str] | None = None,
    *,
    links: Sequence[str] = ("num_classes",),
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Run `OUT [--standard] --config RECIPE --model.weights FILE`: a trained network, packed, as an ONNX file.

    Args:
        module: class of the task's module, with a `network`.
        data: class of its data module.
        write: (packed network, OUT, parsed options) -> what was written, to print.
        args: default those of the process.
        links: as TaskCLI's.
        options: adds further options of the command.

    Returns:
        the exit code; errors are one sentence.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False, epilog="All other options are those of the task: --config RECIPE --model.weights FILE"
    )
    parser.add_argument("path", type=Path, metavar="OUT", help="file to write")
    parser.add_argument("--standard", action="store_true", help="standard ONNX operators alone, slower")
    if options is not None:
        options(parser)
    known, others = parser.parse_known_args(args)
    try:
        built: Any = build_module(module, data, others, links=links)
        built.check_evaluation("export")
        network = built.network.eval()
        print(write(network if is_packed(network) else pack_(network), known.path, known))
    except Exception as error:
        return refuse(error, sentence)
    return 0
