"""Options of Lightning's Trainer that Lightning takes and cannot use: refused by name before a file is written."""

from typing import Any

from esbnn_core.errors import InputError

LEAST = {
    **dict.fromkeys(("accumulate_grad_batches", "check_val_every_n_epoch"), 1),
    **dict.fromkeys(("log_every_n_steps", "reload_dataloaders_every_n_epochs", "gradient_clip_val", "min_epochs"), 0),
    **dict.fromkeys(("num_sanity_val_steps", "min_steps"), -1),
}
"""The smallest value of an option. Lightning divides by a 0 that it does not expect, and ignores what is below."""


def check_trainer_options(trainer: Any) -> None:
    """Raise InputError for the first option in the parsed `trainer` of a config that is below its smallest value.

    `val_check_interval` must be above 0; text in it is a time. Strategies that start processes by spawning would pickle
    the trainer, whose callbacks and loggers hold what cannot be.
    """
    strategy = getattr(trainer, "strategy", None)
    if isinstance(strategy, str) and "spawn" in strategy:
        raise InputError(f"trainer.strategy must not spawn processes, got {strategy}: give ddp, or ddp_fork on a CPU")
    for name, least in LEAST.items():
        value = getattr(trainer, name, None)
        if isinstance(value, int | float) and not value >= least:
            raise InputError(f"trainer.{name} must be a number of at least {least}, got {value}")
    interval = getattr(trainer, "val_check_interval", None)
    if isinstance(interval, int | float) and not interval > 0:
        raise InputError(
            f"trainer.val_check_interval must be above 0, got {interval}: set trainer.limit_val_batches to 0 for a run "
            f"without validation"
        )
