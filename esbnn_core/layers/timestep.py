"""Timestep-aware parts of BI-DiffSR: one learnable shift, and one RPReLU, for each group of timesteps.

The activations of a diffusion network change with the timestep. The timesteps fall into K equal groups, and each sample
of a batch uses the parameters of its own group (papers.md#timestep-units). A group without a sample has a gradient of
zeros, not none: an optimizer with momentum still moves it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError, check_counts
from esbnn_core.layers.widths import thermometer_shift


def timestep_group(timestep: Tensor, timestep_groups: int, total_steps: int) -> Tensor:
    """clamp(int(t * K / total), 0, K - 1) as int64, in the shape of t (papers.md#timestep-units).

    Args:
        timestep: t, whole numbers or floating point.
        timestep_groups: K.
        total_steps: of the training schedule.
    """
    # a whole t of any schedule is far enough from the next group for float32
    return (timestep.float() * timestep_groups / total_steps).long().clamp_(0, timestep_groups - 1)


def of_group(numbers: Iterable[Tensor], group: Tensor, x: Tensor) -> Tensor:
    """Rows (N, C) of the samples' groups, or (1, C) for one group that all samples share.

    Args:
        numbers: K tensors (C,).
        group: int64 (N,) or (1,).
        x: the map (N, C, H, W) that they are applied to.

    Raises:
        InputError: `group` has another shape.
    """
    if group.dim() != 1 or group.shape[0] not in (1, x.shape[0]):
        raise InputError(
            f"timestep groups of a batch of {x.shape[0]} must be one number a sample or one for all, got the shape "
            f"{tuple(group.shape)}"
        )
    return torch.stack(list(numbers)).index_select(0, group)


class TimestepShift(nn.Module):
    """x + b_g with b (C,) per group that starts at 0: BI-DiffSR's TaR in front of a sign.

    Args:
        channels: C.
        timestep_groups: K.
        copies: as RSign.
        copy_spread: as RSign, the same start for every group.
    """

    def __init__(self, channels: int, timestep_groups: int, copies: int = 1, copy_spread: float = 0.0) -> None:
        super().__init__()
        check_counts(timestep_groups=timestep_groups)
        start = thermometer_shift(channels, copies, copy_spread) if copy_spread else torch.zeros(channels)
        self.shifts = nn.ParameterList(nn.Parameter(start.clone()) for _ in range(timestep_groups))
        self.copies = copies
        self.order: Tensor | None = None  # as RSign

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """x (N, C, H, W), group int64 (N,) or (1,)."""
        return x + of_group(self.shifts, group, x)[:, :, None, None]


class TimestepRPReLU(nn.Module):
    """PReLU(x + b_g) + residual + c_g, everything per channel and group: BI-DiffSR's TaA.

    Slopes start at 0.25, shifts at 0. The residual is added before the last shift, as in the packed operator
    (esbnn_core.kernels): sums in the same order are equal bit for bit.

    Args:
        channels: C.
        timestep_groups: K.
    """

    def __init__(self, channels: int, timestep_groups: int) -> None:
        super().__init__()
        check_counts(timestep_groups=timestep_groups)

        def start(value: float) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.full((channels,), value)) for _ in range(timestep_groups))

        self.shifts_in, self.slopes, self.shifts_out = start(0.0), start(0.25), start(0.0)

    def forward(self, x: Tensor, group: Tensor, residual: Tensor | None = None) -> Tensor:
        """x and residual (N, C, H, W), group int64 (N,) or (1,)."""
        x = x + of_group(self.shifts_in, group, x)[:, :, None, None]
        slope = of_group(self.slopes, group, x)
        if len(slope) == 1:
            x = F.prelu(x, slope[0])
        else:  # torch's PReLU has one slope a channel, not one a sample and channel
            x = torch.where(x > 0, x, slope[:, :, None, None] * x)
        x = x if residual is None else x + residual
        return x + of_group(self.shifts_out, group, x)[:, :, None, None]
