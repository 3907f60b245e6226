"""The progress bar of a run whose length is given in steps or in time."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

_OPEN_END = "/-2"
"""What Lightning shows for the last epoch of a run without one: its max_epochs is -1, and epochs count from 0."""


def leave_out_open_end(trainer: L.Trainer) -> None:
    """Let a RichProgressBar show "Epoch 0" in place of "Epoch 0/-2"."""
    for bar in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(bar, RichProgressBar):
            _wrap(bar)


def _wrap(bar: Any) -> None:
    describe = bar._get_train_description

    def without(epoch: int) -> str:
        text: str = describe(epoch)
        return text.replace(_OPEN_END, " " * len(_OPEN_END))

    bar._get_train_description = without
