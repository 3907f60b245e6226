"""The dtype that a plain unit's output would have."""

from typing import Any

import torch
from torch import Tensor

from esbnn_core.units.conv import BinaryUnit


class OutType:
    """dtype of the plain unit's output, by running its modules on one number: autocast treats PReLU in its own way.

    The answer is kept for what it depends on, since on a GPU each of these operators costs as much as one on a map.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], torch.dtype] = {}

    @torch.no_grad()
    def __call__(self, unit: BinaryUnit, dtypes: list[torch.dtype], residual: Tensor | None) -> torch.dtype:
        """Of sums of the first of `dtypes`, multiplied by vectors of the others."""
        device = unit.conv.weight.device
        kind = device.type
        narrowed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        modules = (unit.inner_act, unit.act)
        key = (
            *(kind, torch.get_autocast_dtype(kind) if narrowed else None, *dtypes, "residual"),
            *(None if residual is None else residual.dtype, *map(type, modules)),
            *(p.dtype for module in modules for p in module.parameters()),
        )
        if key not in self.known:
            dtype = dtypes[0]
            for other in dtypes[1:]:
                dtype = torch.promote_types(dtype, other)
            channels = unit.copies * unit.conv.out_channels
            y = unit.inner_act(torch.zeros(1, channels, 1, 1, dtype=dtype, device=device))
            if residual is not None:
                y = y + y.new_zeros((), dtype=residual.dtype).expand_as(y)
            self.known[key] = unit.act(y).dtype
        return self.known[key]
