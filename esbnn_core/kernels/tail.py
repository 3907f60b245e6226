"""The tail of a unit that trains on bits as every library takes it: its parameters, and the calls that one offers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

ACTIVATIONS = {"none": 0, "prelu": 1, "hardtanh": 2}
"""enum Activation of both libraries."""


def all_single(*vectors: Tensor | None) -> bool:
    """Whether all that are given are float32."""
    return all(t is None or t.dtype == torch.float32 for t in vectors)


class TailSteps(ABC):
    """affine -> [PReLU] -> [+ residual] -> [activation].

    Args:
        copies: tiles.
        centre: (O,) float32 subtracted from the sums, or None.
        vectors: factor, offset, inner, shift_in, slope, shift_out (C',) float32, the last four None where left out.
        act: "none", "prelu" or "hardtanh".
        limits: of the hardtanh.
    """

    def __init__(
        self,
        copies: int,
        centre: Tensor | None,
        vectors: Sequence[Tensor | None],
        act: str,
        limits: tuple[float, float],
    ) -> None:
        factor = vectors[0]
        assert factor is not None
        self.copies, self.act, self.channels, self.limits = copies, ACTIVATIONS[act], len(factor), limits
        self.served = all_single(centre, *vectors)
        self.vectors = [None if t is None else t.contiguous() for t in (centre, *vectors)]
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027 (optional: CUDA keeps nothing)
        """What a library keeps beside these."""

    @abstractmethod
    def forward(self, sums: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """y (M, C') of `dtype` from sums (M, O) and the residual (M, C'); None where the library does not serve."""

    @abstractmethod
    def backward(
        self, grad: Tensor, sums: Tensor, residual: Tensor | None, wants_residual: bool
    ) -> tuple[Tensor, Tensor | None, Tensor] | None:
        """Gradients of forward.

        Args:
            grad: (M, C') of y.
            sums: (M, O).
            residual: (M, C'), read only where an activation follows it.
            wants_residual: whether to compute its gradient.

        Returns:
            That of the centred sums (M, O) and of the residual (M, C') or None, float32, and those of offset, factor,
            inner, shift_in, slope and shift_out (6, C') float64; None where the library does not serve.
        """
