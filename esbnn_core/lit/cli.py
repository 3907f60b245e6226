"""The command line of every task: Lightning's own, with one seed, our callbacks and errors of one sentence."""

import atexit
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks.timer import Interval
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from esbnn_core.checkpoint.format import find_misfits
from esbnn_core.checkpoint.run_file import load_run, run_state
from esbnn_core.errors import InputError, check_output_folder, refuse
from esbnn_core.lit.callbacks import EpochSeed
from esbnn_core.lit.checks import ChecksData, ChecksEvaluation, ChecksFit
from esbnn_core.lit.malloc import keeps_freed_memory
from esbnn_core.lit.metrics_csv import CurveFromHere, keep_curves
from esbnn_core.lit.module import TaskModule
from esbnn_core.lit.progress import leave_out_open_end
from esbnn_core.lit.recipes import CHECKPOINT, RATE, read_config, with_run_defaults
from esbnn_core.lit.refusals import ends_as_signalled, sentence
from esbnn_core.lit.trainer_options import check_trainer_options

_ELSEWHERE = re.compile(r"\w+://|registry")
"""The beginning of a ckpt_path that is no local file."""
_SHARDED = ("meta.pt", ".metadata", "checkpoint", "latest")
"""What is in the folder of a sharded checkpoint, of FSDP or DeepSpeed."""


class RecipeParser(LightningArgumentParser):
    """Reads `--config` files as recipes: with their base, and the first of a command line over the defaults of a run.

    Attributes:
        monitor: metric of the best checkpoint, "" for none; None for a parser whose configs get no defaults.
        gives_callbacks: whether the callbacks of the first config are the defaults.
        gives_logger: likewise of the logger.
    """

    monitor: str | None = None
    gives_callbacks: bool = False
    gives_logger: bool = False
    _first: Path | None = None
    _text: str | None = None

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """As jsonargparse, after `base` and the defaults are resolved."""
        file = Path(path).resolve()
        body = read_config(path)
        if self.monitor is not None and self._first in (None, file):
            self._first = file
            given = body.get("trainer") or {}
            self.gives_callbacks, self.gives_logger = "callbacks" not in given, "logger" not in given
            body = with_run_defaults(body, file.stem, self.monitor)
        self._text = yaml.safe_dump(body, sort_keys=False)
        try:
            found: Namespace = super().parse_path(path, *args, **kwargs)
            return found
        finally:
            self._text = None

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """As jsonargparse; a file is parsed as it was resolved."""
        found: Namespace = super().parse_string(content if self._text is None else self._text, *args, **kwargs)
        return found

    def dump(self, *args: Any, skip_validation: bool = True, **kwargs: Any) -> str:
        """As jsonargparse, without checking again what was parsed: a tenth of the start of a command."""
        text: str = super().dump(*args, skip_validation=skip_validation, **kwargs)
        return text

    def save(self, *args: Any, skip_validation: bool = True, **kwargs: Any) -> None:
        """Likewise."""
        super().save(*args, skip_validation=skip_validation, **kwargs)


class TaskCLI(LightningCLI):
    """LightningCLI whose `seed_everything` also seeds the data module and the start of every epoch.

    Args:
        links: attributes of the data module that the module takes under the same name.
    """

    def __init__(self, *args: Any, links: Sequence[str] = ("num_classes",), **kwargs: Any) -> None:
        self.links = tuple(links)
        self._resumed: tuple[str, Mapping[str, Tensor]] | None = None
        kwargs.setdefault("parser_class", RecipeParser)
        words = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        self._first_word = words[0] if isinstance(words, Sequence) and words else None
        super().__init__(*args, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """As Lightning's, without the options of a subcommand that the first word rules out: they take time to make.

        An option as the first word rules out none: --help, or a --config, whose file may hold any subcommand.
        """
        if subcommand != self._first_word and self._first_word in self.subcommands():
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed, the links from the data, and the defaults of a run."""
        module = self.model_class
        if isinstance(parser, RecipeParser) and isinstance(module, type) and issubclass(module, TaskModule):
            parser.monitor = module.monitor
        parser.add_lightning_class_args(EpochSeed, "epoch_seed")
        parser.link_arguments("seed_everything", "epoch_seed.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        for name in self.links:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's, with the home folder in the place of a leading ~, which a shell leaves in --name=~/path."""
        super().parse_arguments(parser, args)
        self.config = _expand_home(self.config)

    def _set_seed(self) -> None:
        """As Lightning's, which raises numpy's error for a number that numpy does not take."""
        seed = self._get(self.config, "seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything must be a whole number from 0 to {2**32 - 1:,}, got {seed}")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Refuse a file that is not the checkpoint of a run before anything is built.

        Lightning would take the options in the checkpoint over those given here. A run is what its command line says.
        """
        command = self.config.get("subcommand")
        path = self.config[command].get("ckpt_path") if command else None
        if path is not None and path not in ("best", "last", "hpc") and not _ELSEWHERE.match(str(path)):
            tensors = check_run_checkpoint(Path(str(path)))
            # shapes alone: Lightning reads the values when the module is there
            self._resumed = str(path), {name: tensor.to("meta") for name, tensor in tensors.items()}

    def before_instantiate_classes(self) -> None:
        """Lightning's hook."""
        for name in ("optimizer", "lr_scheduler"):
            if self._get(
                self.config, name
            ):  # Lightning's own would replace the module's, with the clip of latent weights
                raise InputError(f"{name} must be given as model.{name}, got --{name}: the module makes it")
        check_trainer_options(self._get(self.config, "trainer"))
        self._drop_defaults()
        if self.subcommand is not None and self._get(self.config, "trainer").fast_dev_run:
            self._redirect_dry_run()

    def _redirect_dry_run(self) -> None:
        """Let a dry run (trainer.fast_dev_run) write elsewhere: the files of a finished run in its folder stay."""
        folder = tempfile.mkdtemp(prefix="esbnn-dry-run-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self._get(self.config, "trainer").default_root_dir = folder
        model = self._get(self.config, "model")
        if "predictions" in model:
            model.predictions = None  # the folder of the run
        rank_zero_info("trainer.fast_dev_run: a dry run, whose files are written to a temporary folder and removed")

    def _drop_defaults(self) -> None:
        """Leave out those of the defaults that Lightning refuses: without a logger, without checkpoints, barebones."""
        parser = self.parser if self.subcommand is None else self._subcommand_parsers[self.subcommand]
        trainer = self._get(self.config, "trainer")
        if not isinstance(parser, RecipeParser):
            return
        if trainer.barebones and parser.gives_logger:
            trainer.logger = False
        if parser.gives_callbacks and trainer.callbacks:
            kept_out = trainer.barebones or trainer.enable_checkpointing is False
            refused = {RATE: trainer.logger is False, CHECKPOINT: kept_out}
            trainer.callbacks = [entry for entry in trainer.callbacks if not refused.get(entry.class_path)]

    def instantiate_classes(self) -> None:
        """Build everything, and let the module refuse its data before a file is written."""
        super().instantiate_classes()
        if self.subcommand is not None:
            keeps_freed_memory(self.trainer)
            leave_out_open_end(self.trainer)
        if isinstance(self.model, TaskModule):
            links = {name: getattr(self.datamodule, name) for name in self.links}
            built = self.config_dump["model"]
            self.model.note_options({**built.get("init_args", built), **links})
        if isinstance(self.model, ChecksData):
            self.model.check_data(self.datamodule)
        if self._resumed is not None:
            check_names_and_shapes(self.model, *self._resumed)
            self._resumed = None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """As Lightning's; an option that it refuses is one sentence."""
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # of Lightning, and of any class that a config names
            if sentence(error) is not None:
                raise
            reason = textwrap.shorten(str(error) or type(error).__name__, 300)
            raise InputError(f"the trainer cannot be built ({reason}): correct the options of trainer") from error

    def before_fit(self) -> None:
        """Let the module refuse to train before a file is written; Lightning's hook."""
        resumes = bool(self._get(self.config_init, "ckpt_path"))
        if isinstance(self.model, ChecksFit):
            self.model.check_fit(resumes=resumes)
        self._check_folders()
        if resumes:
            keep_curves(self.trainer.loggers)
            self.trainer.callbacks.append(CurveFromHere())  # type: ignore[attr-defined]

    def _check_folders(self) -> None:
        """Refuse folders of the run that cannot be written to, in place of a failure after hours of training."""
        named = [("trainer.default_root_dir", self.trainer.default_root_dir)]
        named += [("save_dir of trainer.logger", logger.save_dir or "") for logger in self.trainer.loggers]
        for name, folder in named:
            if folder and self.trainer.is_global_zero and not _ELSEWHERE.match(str(folder)):
                check_output_folder(Path(folder), name)

    def before_validate(self) -> None:
        """Lightning's hook."""
        self._check_evaluation("validate")

    def before_test(self) -> None:
        """Lightning's hook."""
        self._check_evaluation("test")

    def before_predict(self) -> None:
        """Lightning's hook."""
        self._check_evaluation("predict")

    def _check_evaluation(self, run: str) -> None:
        """Let the module refuse to be judged before a file is written."""
        if isinstance(self.model, ChecksEvaluation) and not self._get(self.config_init, "ckpt_path"):
            self.model.check_evaluation(run)
        keep_curves(self.trainer.loggers)


def check_run_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a run's checkpoint by name, none for a folder of a sharded one.

    Raises:
        InputError: a file or folder that is something else.
    """
    if not path.name:
        raise InputError("ckpt_path must be a run's checkpoint, got an empty path: give last.ckpt, or leave it out")
    if path.is_dir() and any((path / name).exists() for name in _SHARDED):
        return {}
    return run_state(load_run(path, "ckpt_path"), path, "ckpt_path")


def check_names_and_shapes(module: L.LightningModule, path: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError unless the tensors of a run's checkpoint are the module's by name and shape.

    Precision may differ, because the trainer converts the module later.
    """
    if tensors and (faults := find_misfits(module.state_dict(), tensors)):
        raise InputError(
            f"checkpoint {path} does not fit the network: {faults}: give the config that it was trained with"
        )


# a default of Lightning's Timer, which config.yaml could not hold
yaml.SafeDumper.add_representer(Interval, lambda dumper, interval: dumper.represent_str(interval.value))


class TrainingConfig(SaveConfigCallback):
    """Writes config.yaml for a training alone: an evaluation into the same folder leaves it as it is."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning's hook."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


def _expand_home(value: Any) -> Any:
    """A parsed config whose texts that begin with ~/ are paths in the home folder."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~/") else value
    if isinstance(value, Namespace):
        for key, inner in vars(value).items():
            setattr(value, key, _expand_home(inner))
    if isinstance(value, dict):
        return {key: _expand_home(inner) for key, inner in value.items()}
    return [_expand_home(inner) for inner in value] if type(value) is list else value


def _seed(value: bool | int | None) -> int:
    """A number for our generators from what seed_everything may be; null and false are 0."""
    return int(value or 0)


def run(
    module: type[L.LightningModule],
    data: type[L.LightningDataModule],
    args: Sequence[str] | None = None,
    *,
    links: Sequence[str] = ("num_classes",),
    **trainer_defaults: Any,
) -> int:
    """Run fit, validate, test or predict from the command line; returns the exit code.

    Our samplers split the data over processes themselves and count every evaluation image once, so Lightning's
    sampler stays out (use_distributed_sampler).

    A run that SIGTERM ended raises SystemExit with 143.

    Args:
        module: class of the task's module.
        data: class of its data module.
        args: default those of the process.
        links: as TaskCLI's.
        **trainer_defaults: of the Trainer, under those of the config.
    """
    try:
        with ends_as_signalled():
            TaskCLI(
                module,
                data,
                links=links,
                args=list(args) if args is not None else None,
                seed_everything_default=0,
                # half an option's name is more often a slip than intended, and jsonargparse will refuse it too
                parser_kwargs={"allow_abbrev": False},
                trainer_defaults={"use_distributed_sampler": False, **trainer_defaults},
                save_config_callback=TrainingConfig,
                # a second training into the same folder replaces its config, as it replaces its checkpoints
                save_config_kwargs={"overwrite": True},
            )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as shells have it
    except Exception as error:
        return refuse(error, sentence)
    return 0
