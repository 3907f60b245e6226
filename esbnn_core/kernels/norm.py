"""The norm of a unit that trains on bits as every library takes it: over the exact sums of a batch, by their moments.

A dozen operators of torch on vectors of channels, forward and backward, are one call here: on a GPU each of them costs
the host more than the whole convolution costs the device.
"""

from typing import NamedTuple

from torch import Tensor

from esbnn_core.kernels.tail import all_single


class NormCall(NamedTuple):
    """What both directions read.

    Attributes:
        moments: (2, O) int64, sums and sums of squares over rows.
        rows: their number, above 1.
        copies: tiles of the sums.
        eps: of the norm.
        scale: (O,) float32 that the sums are multiplied by first, or None.
        gamma: (C',) float32, the norm's weight, C' = copies*O; or None.
    """

    moments: Tensor
    rows: int
    copies: int
    eps: float
    scale: Tensor | None
    gamma: Tensor | None

    @property
    def filters(self) -> int:
        """O."""
        return self.moments.shape[1]

    @property
    def channels(self) -> int:
        """C'."""
        return self.copies * self.filters

    def served(self, *others: Tensor | None) -> bool:
        """Whether all numbers, `others` too, are of the types that the libraries read."""
        return all_single(self.scale, self.gamma, *others)

    def forward_sizes(self) -> list[int]:
        """Parts of what forward makes: centre, factor, offset."""
        return [self.filters, self.channels, self.channels]

    def backward_sizes(self) -> list[int]:
        """Parts of what backward makes.

        Constant and slope of what the statistics add to the gradient of the sums, the gradients of scale and gamma,
        then those of offset, inner slope, shift_in, slope and shift_out.
        """
        return [self.filters] * 3 + [self.channels] * 6
