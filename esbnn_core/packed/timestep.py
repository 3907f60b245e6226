"""The packed TimestepUnit: one convolution, and shifts and slopes for each group of timesteps."""

import torch
from torch import Tensor, nn

from esbnn_core.layers import Tile, TimestepRPReLU, TimestepShift
from esbnn_core.packed.layers import PackedConv2d, check_part
from esbnn_core.packed.match import packs
from esbnn_core.units.timestep import TimestepUnit


@packs(TimestepUnit)
class PackedTimestepUnit(PackedConv2d):
    """Packed TimestepUnit: x (N, C, H, W) and group int64 (N,) or (1,) -> the shape of x.

    With one group for the batch it calls one operator, with a group for each sample one operator a sample.

    Attributes:
        shifts: buffer (K, C), the groups' shifts before the sign, or None.
        act: buffer (K, 3, C), the groups' shift_in, slope and shift_out, or None.
    """

    shifts: Tensor | None
    act: Tensor | None
    zero: Tensor
    one: Tensor

    def __init__(self, unit: TimestepUnit) -> None:
        super().__init__(unit.conv, unit.copies)
        self.residual, number = unit.residual, unit.timestep_groups
        shifted, active = unit.shift is not None, unit.act is not None
        self.register_buffer("shifts", self.scale.new_zeros(number, self.geometry.channels) if shifted else None)
        self.register_buffer("act", self.scale.new_zeros(number, 3, len(self.scale)) if active else None)
        # an RPReLU that only adds: its last shift comes after the residual
        self.register_buffer("zero", self.scale.new_zeros(len(self.scale)), persistent=False)
        self.register_buffer("one", self.scale.new_ones(len(self.scale)), persistent=False)

    @torch.no_grad()
    def fill_(self, unit: TimestepUnit, name: str = "") -> "PackedTimestepUnit":  # type: ignore[override]
        """Compute bits, scale and every group's numbers from the latent unit; returns the packed one.

        Errors as PackedLayer.
        """
        check_part("tile", unit.tile, name, nn.Identity, Tile)
        if unit.shift is not None:
            check_part("shift", unit.shift, name, TimestepShift)
        if unit.act is not None:
            check_part("activation", unit.act, name, TimestepRPReLU)
        super().fill_(unit.conv, name)
        if self.shifts is not None and unit.shift is not None:
            self.shifts.copy_(torch.stack(list(unit.shift.shifts)))
        if self.act is not None and unit.act is not None:
            parts = (unit.act.shifts_in, unit.act.slopes, unit.act.shifts_out)
            self.act.copy_(torch.stack([torch.stack(list(part)) for part in parts], 1))
        return self

    def forward(self, x: Tensor, group: Tensor) -> Tensor:  # type: ignore[override]
        if len(group) == 1:
            return self._one_group(x, group)
        return torch.cat([self._one_group(*pair) for pair in zip(x.split(1), group.split(1), strict=True)])

    def _one_group(self, x: Tensor, group: Tensor) -> Tensor:
        """x (N, C, H, W) whose samples all have the group (1,)."""
        shift = None if self.shifts is None else self.shifts.index_select(0, group)[0]
        before, after = (x if self.residual == where else None for where in ("before_act", "after_act"))
        if self.act is None:
            return self.convolve(x, residual=before if after is None else after, shift=shift)[0]
        rows = self.act.index_select(0, group)[0]
        if after is None:
            return self.convolve(x, residual=before, rprelu=rows, shift=shift)[0]
        shift_in, slope, shift_out = rows
        last = torch.stack([self.zero, self.one, shift_out])
        return self.convolve(x, prelu=slope, residual=after, rprelu=last, shift=shift, bias=shift_in)[0]
