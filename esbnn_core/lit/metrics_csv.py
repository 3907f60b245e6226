"""metrics.csv over several runs into one folder: a resumed fit goes on after its rows, an evaluation adds its own.

Lightning's CSVLogger deletes the metrics.csv that it finds in its folder. With a folder for every run (version_0,
version_1, ...) that does not matter; our recipes write into one folder, so that a resume finds its run.

The mean of an epoch that was interrupted is Lightning's own: of the batches after the checkpoint.
"""

import csv
import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import lightning as L
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only

from esbnn_core.files import write_atomically


@rank_zero_only
def keep_curves(loggers: Iterable[Logger]) -> None:
    """Let every CSVLogger write after the rows that its metrics.csv has; call it before the trainer uses the loggers.

    A file that is not local (an address of fsspec) is left to Lightning.
    """
    for logger in loggers:
        path = _curve(logger)
        if path is None or not path.is_file() or not isinstance(logger, CSVLogger):
            continue
        aside = path.with_name(f"{path.name}.kept")
        os.replace(path, aside)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory")  # it says that files will be deleted
                writer = logger.experiment
        finally:
            os.replace(aside, path)
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
        assert isinstance(writer, _ExperimentWriter)
        writer.metrics_keys = header


class CurveFromHere(L.Callback):
    """Drops the rows that a run wrote after the checkpoint from which it now goes on: it writes them again."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook; the counters are those of the checkpoint by now."""
        if trainer.is_global_zero:
            for path in filter(None, map(_curve, trainer.loggers)):
                if path.is_file():
                    _cut(path, trainer.global_step)


def _curve(logger: Logger) -> Path | None:
    if not isinstance(logger, CSVLogger) or "://" in str(logger.log_dir):
        return None
    return Path(logger.log_dir) / _ExperimentWriter.NAME_METRICS_FILE


def _cut(path: Path, steps: int) -> None:
    """Keep only the rows of the first `steps` steps, which count from 0."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), list(reader.fieldnames or [])
    kept = [row for row in rows if int(row["step"]) < steps]
    if len(kept) < len(rows):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header)
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(path, text.getvalue().encode())
