"""How a step over rows of channels is divided among threads and blocks (training.cuh), from its shape alone.

So sums over rows are added up in the same order on every device, and the same in every run.
"""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from esbnn_core.kernels.cuda.launch import Device
from esbnn_core.kernels.cuda.library import Kernel

VECTOR, THREADS, LANES = 4, 128, 16
"""Channels of a thread, threads of a block, and the most of them across a row: 128 bytes of a narrow type."""
BLOCKS = 2048
"""Blocks that a large map is divided into: several for each place that a large device has for one."""
MOST_TURNS, SLOTS = 64, 8
"""Rows of a thread at most, and where a tail has copies (TURNS of tail.cuh)."""
ACROSS = 65535
"""Blocks along the second side of a grid."""

ROWS = struct.Struct("q5i4x")
TOTALS = struct.Struct("2Q3i4x")
TOTAL_COLUMNS, TOTAL_THREADS = 16, 512


@dataclass(frozen=True)
class Division:
    """Of `rows` of `channels`.

    Attributes:
        rows: their number.
        channels: of a row; of a tail its filters.
        lanes: threads across a tile of channels.
        turns: rows of a thread.
        blocks: along the rows.
        tiles: of channels.
    """

    rows: int
    channels: int
    lanes: int
    turns: int
    blocks: int
    tiles: int

    def packed(self, *maps: Tensor | None) -> bytes:
        """struct Rows of training.cuh for a step that reads and writes these maps and vectors."""
        wide = self.channels % VECTOR == 0 and all(
            t is None or t.data_ptr() % (VECTOR * t.element_size()) == 0 for t in maps
        )
        return ROWS.pack(self.rows, self.channels, self.lanes, self.turns, self.blocks, wide)

    def launch(self, device: Device, function: str, arguments: bytes) -> None:
        """Launch a kernel of training.cu that is divided so."""
        device.launch(Kernel(function, source="training"), (self.blocks, self.tiles), THREADS, arguments)


def divide(rows: int, channels: int, most: int = MOST_TURNS) -> Division | None:
    """At most `most` rows a thread; None for an empty map and one of more tiles than a grid has."""
    vectors = -(-channels // VECTOR)
    tiles = -(-vectors // LANES)
    if not rows or not channels or tiles > ACROSS:
        return None
    lanes = -(-vectors // tiles)
    lines = THREADS // lanes
    turns = max(1, min(most, -(-rows * tiles // (lines * BLOCKS))))
    return Division(rows, channels, lanes, turns, -(-rows // (lines * turns)), -(-vectors // lanes))


def add_blocks(device: Device, partials: Tensor, used: int) -> Tensor:
    """Sums (count, channels) float64 over the blocks of (count, blocks, channels) float32; 0 but where a bit is set."""
    count, blocks, channels = partials.shape
    totals = torch.empty(count, channels, dtype=torch.float64, device=partials.device)
    arguments = TOTALS.pack(partials.data_ptr(), totals.data_ptr(), blocks, channels, used)
    grid = (-(-channels // TOTAL_COLUMNS), count)
    device.launch(Kernel("totals", source="training"), grid, TOTAL_THREADS, arguments)
    return totals
