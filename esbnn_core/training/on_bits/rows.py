"""Maps as rows of channels, and walking them in pieces that stay in the processor's cache."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 18
"""Values of one map in a piece on the CPU, where a step over a whole map would wait for memory."""


def rows_of(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C) contiguous; a view where x is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def map_of(rows: Tensor, like: Tensor) -> Tensor:
    """(N*H*W, C) -> (N, C, H, W) in channels_last memory, N, H and W as in `like`."""
    images, _, height, width = like.shape
    return rows.view(images, height, width, -1).permute(0, 3, 1, 2)


def pieces(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension of (M, C): small ones on the CPU, a single one elsewhere."""
    count, channels = rows.shape
    step = max(1, PIECE // max(1, channels)) if rows.device.type == "cpu" else max(1, count)
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def work_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """dtype of the element-wise steps: float64 where one of `dtypes` is, else float32, never narrower."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast inside: it would narrow a PReLU in the middle of steps that have a dtype already."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class ChannelSum:
    """Sum over rows (M, C) -> (C,), piece by piece; the pieces' sums are added in float64."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.total = torch.zeros(channels, dtype=torch.float64, device=device)

    def add(self, piece: Tensor) -> None:
        """One more piece (m, C)."""
        self.total += piece.sum(0)
