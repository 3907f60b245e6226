"""Whether a scheduler samples with the noise that a network was trained with: tried on an image that is known.

Schedulers of diffusers take most options of each other, and some of them without a word sample another process than
that of the network: flow matching, the sigmas of EDM, an inversion, other betas. Names and options do not tell.
"""

import inspect
import json
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from esbnn_core.errors import reason_of

STEPS = 20
"""Of the trial: few enough to cost hundredths of a second, enough for the schedulers of high order."""
FARTHEST = 0.05
"""From the image at the end; right ones are within 0.01."""
LEAST, MOST = 0.75, 1.35
"""Noise met over noise of training. Right ones have 0.94 to 1.18; DDPM's `fixed_large`, on purpose noisier, 1.29."""
CLEAR = 0.05
"""Share of noise in the sample's variance below which its amount is not judged."""


@lru_cache(maxsize=64)
def sampling_fault(kind: Any, config: str, prediction: str, alphas: tuple[float, ...]) -> str:
    """What is wrong with sampling by a scheduler, as the end of a sentence; empty for none.

    Args:
        kind: class of the scheduler.
        config: its to_json_string().
        prediction: the prediction_type of the network.
        alphas: alpha-bar of each timestep of training.
    """
    try:
        scheduler = kind.from_config(json.loads(config))
        return _try_out(scheduler, prediction, torch.tensor(alphas, dtype=torch.float64))
    except Exception as error:  # of any kind: the library's schedulers share no class of errors
        return f"fails at sampling ({type(error).__name__}: {reason_of(error)})"


def _try_out(scheduler: Any, prediction: str, alphas: Tensor) -> str:
    """Samples a known image with a network that knows it: (1, 3, 16, 16) in float64."""
    own = getattr(scheduler, "alphas_cumprod", None)
    # DPM-Solver cannot divide by 0 and keeps 2^-24 at the last step
    if own is not None and not (own.shape == alphas.shape and torch.allclose(own.double(), alphas, 1e-3, 1e-6)):
        return "has other betas or another number of timesteps"
    generator = torch.Generator().manual_seed(0)
    image = torch.linspace(0.2, 0.8, 3 * 16 * 16, dtype=torch.float64).view(1, 3, 16, 16)
    sample = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    extra = {"generator": [generator]} if "generator" in inspect.signature(scheduler.step).parameters else {}
    scheduler.set_timesteps(STEPS)
    sample = sample * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        alpha = _at(alphas, float(t))
        given = scheduler.scale_model_input(sample, t)
        noise = (given - alpha.sqrt() * image) / (1 - alpha).sqrt()
        amount = noise.square().mean().sqrt().item()
        if 1 - alpha > CLEAR and not LEAST <= amount <= MOST:
            return f"gives the network {amount:.3g} times the noise of its training at timestep {float(t):.5g}"
        known = {
            "epsilon": noise,
            "sample": image,
            "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * image,
        }[prediction]
        sample = scheduler.step(known, t, sample, **extra).prev_sample.double()
    farthest = (sample - image).abs().max().item()
    if math.isnan(farthest) or farthest > FARTHEST:
        return f"ends {farthest:.3g} off an image that the network knows"
    return ""


def _at(alphas: Tensor, t: float) -> Tensor:
    """Alpha-bar at a timestep that may lie between two of training's."""
    t = min(max(t, 0.0), len(alphas) - 1.0)
    low = min(int(t), len(alphas) - 2)
    between: Tensor = torch.lerp(alphas[low], alphas[low + 1], t - low)
    return between
