"""Schedulers of diffusers with the noise of BI-DiffSR (papers.md#bi-diffsr-diffusion), and what a network predicts."""

import inspect
import reprlib
from typing import Any, Literal, NamedTuple

import diffusers
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from esbnn_core.errors import InputError, reason_of
from tasks.super_resolution.scheduler_check import sampling_fault

Prediction = Literal["epsilon", "sample", "v_prediction"]


class Target(NamedTuple):
    """What a network is trained to predict, and on which noise.

    Attributes:
        prediction_type: of diffusers' schedulers. "epsilon", the noise, is the paper's; "sample" the image;
            "v_prediction" sqrt(a) noise - sqrt(1 - a) image, a the alpha-bar of the step.
        zero_terminal_snr: whether the betas are rescaled so that the last step is pure noise (papers.md#zero-snr). At
            the paper's betas 0.7 % of the image's amplitude are left there.
    """

    prediction_type: Prediction = "epsilon"
    zero_terminal_snr: bool = False


PAPER = Target()


def default_scheduler(target: Target = PAPER) -> DDIMScheduler:
    """The sampler of the original: 2000 training steps, linear betas 1e-6 .. 1e-2, noise predicted.

    The options are the library's defaults: the predicted image is clipped to [-1, 1] although images are in [0, 1], 50
    steps are t = 1960, 1920, ..., 0, and the last alpha-bar is 1 (papers.md#bi-diffsr-diffusion). With betas that end
    in pure noise the steps are "trailing", because such a sampling has to begin at the last one (papers.md#zero-snr).

    Args:
        target: of the network.
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
        prediction_type=target.prediction_type,
        timestep_spacing="trailing" if target.zero_terminal_snr else "leading",
        rescale_betas_zero_snr=target.zero_terminal_snr,
    )


def make_scheduler(
    name: str = "DDIMScheduler", options: dict[str, Any] | None = None, target: Target = PAPER
) -> SchedulerMixin:
    """A scheduler of diffusers, with the noise of default_scheduler.

    Args:
        name: its class.
        options: further ones of the scheduler.
        target: of the network.

    Raises:
        InputError: a name that diffusers does not have; an option that the scheduler does not have; a target that it
            does not have, or that the options contradict; a scheduler that samples from other noise than that of
            training (scheduler_check.py).
    """
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise InputError(f"scheduler {name!r} is not one of diffusers': give a class name, e.g. DDIMScheduler")
    known = inspect.signature(found.__init__).parameters
    for option in options or {}:
        if option not in known:
            raise InputError(f"an option of {name} must be one of {', '.join(list(known)[1:])}, got {option!r}")
    inherited = {key: value for key, value in default_scheduler(target).config.items() if key in known}
    try:
        scheduler: SchedulerMixin = found(**{**inherited, **(options or {})})
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"scheduler {name} cannot be made with {reprlib.repr(options or {})} ({reason_of(error)})"
        ) from error
    check_target(scheduler, target)
    check_noise(scheduler, target)
    return scheduler


def check_target(scheduler: SchedulerMixin, target: Target) -> None:
    """Raise InputError unless a scheduler samples what the network was trained to predict."""
    config = scheduler.config
    found = Target(config.get("prediction_type", "epsilon"), bool(config.get("rescale_betas_zero_snr", False)))
    if found != target:
        raise InputError(
            f"the scheduler must have the prediction_type and rescale_betas_zero_snr that the network was trained for, "
            f"{target.prediction_type} and {target.zero_terminal_snr}, got {found.prediction_type} and "
            f"{found.zero_terminal_snr} of {type(scheduler).__name__}: take make_scheduler with the network's target"
        )


def check_noise(scheduler: SchedulerMixin, target: Target) -> None:
    """Raise InputError unless a scheduler samples with the noise of default_scheduler."""
    with torch.device("cpu"):  # a network may be built on another one, or on meta
        alphas = tuple(default_scheduler(target).alphas_cumprod.tolist())
        fault = sampling_fault(type(scheduler), scheduler.to_json_string(), target.prediction_type, alphas)
    if fault:
        raise InputError(
            f"scheduler {type(scheduler).__name__} must sample from the noise of training what the network predicts, "
            f"{target.prediction_type}, but it {fault}: take DDIMScheduler, or leave out options"
        )
