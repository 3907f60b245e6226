"""The steps of training on bits by device: the CPU library's (cpu/training.py) or the CUDA kernels' (cuda/training.py).

Both work on rows of channels in float32, from maps of float32, bfloat16 or float16, and return None where they do not
serve and torch has to; cpu/training.py describes their arguments.
"""

from typing import Protocol

import torch
from torch import Tensor

from esbnn_core.kernels.cpu import training as cpu_training
from esbnn_core.kernels.cuda import training as cuda_training
from esbnn_core.kernels.norm import NormCall
from esbnn_core.kernels.tail import TailSteps


class Steps(Protocol):
    """What a device offers."""

    def moments(self, sums: Tensor, largest: int) -> Tensor | None:
        """Exact sums, and sums of squares, over rows."""

    def norm(
        self,
        call: NormCall,
        beta: Tensor | None,
        shift_in: Tensor | None,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
    ) -> Tensor | None:
        """What a tail starts with, by the batch's statistics; running statistics are updated."""

    def norm_gradients(self, call: NormCall, totals: Tensor) -> Tensor | None:
        """From a tail's totals to the gradients of all vectors of channels."""

    @property
    def TailCall(self) -> type[TailSteps]:
        """A unit's steps after its sums."""

    def add_statistics(
        self, grad: Tensor, sums: Tensor, centre: Tensor, constant: Tensor, slope: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """grad + constant + slope * (sums - centre)."""

    def estimator(
        self,
        rule: str,
        clip: float,
        grad: Tensor,
        x: Tensor | None,
        shift: Tensor | None,
        mask: tuple[Tensor, int] | None,
        onto: Tensor | None,
        dtype: torch.dtype,
        with_total: bool = True,
    ) -> tuple[Tensor, Tensor] | None:
        """From the gradient of signs to that of their input."""

    def signs(self, x: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """sign(x + shift) as +-1."""

    def unpack(self, bits: Tensor, channels: int, groups: int, dtype: torch.dtype) -> Tensor | None:
        """Packed bits as +-1."""


BY_DEVICE: dict[str, Steps] = {"cpu": cpu_training, "cuda": cuda_training}


def steps_of(x: Tensor) -> Steps:
    """The steps for a tensor's device; on another kind of device the CPU's, which leave everything to torch."""
    return BY_DEVICE.get(x.device.type, cpu_training)
