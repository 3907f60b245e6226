"""Schedulers of diffusers with the noise of BI-DiffSR (papers.md#bi-diffsr-diffusion)."""

import inspect
import reprlib
from typing import Any

import diffusers
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from esbnn_core.errors import InputError, reason_of


def default_scheduler() -> DDIMScheduler:
    """The sampler of the original: 2000 training steps, linear betas 1e-6 .. 1e-2, noise predicted.

    The options are the library's defaults: the predicted image is clipped to [-1, 1] although images are in [0, 1], 50
    steps are t = 1960, 1920, ..., 0, and the last alpha-bar is 1 (papers.md#bi-diffsr-diffusion).
    """
    return DDIMScheduler(
        num_train_timesteps=2000,
        beta_start=1e-6,
        beta_end=1e-2,
        beta_schedule="linear",
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="epsilon",
        timestep_spacing="leading",
        rescale_betas_zero_snr=False,
    )


def make_scheduler(name: str = "DDIMScheduler", options: dict[str, Any] | None = None) -> SchedulerMixin:
    """A scheduler of diffusers, with the noise of default_scheduler.

    Args:
        name: its class.
        options: further ones of the scheduler.

    Raises:
        InputError: a name that diffusers does not have, or an option that the scheduler does not have.
    """
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise InputError(f"scheduler {name!r} is not one of diffusers': give a class name, e.g. DDIMScheduler")
    known = inspect.signature(found.__init__).parameters
    for option in options or {}:
        if option not in known:
            raise InputError(f"an option of {name} must be one of {', '.join(list(known)[1:])}, got {option!r}")
    inherited = {key: value for key, value in default_scheduler().config.items() if key in known}
    try:
        scheduler: SchedulerMixin = found(**{**inherited, **(options or {})})
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"scheduler {name} cannot be made with {reprlib.repr(options or {})} ({reason_of(error)})"
        ) from error
    return scheduler
