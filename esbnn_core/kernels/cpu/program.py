"""Steps of the C library as one call: recorded once for a shape of the input, run with the addresses of each call."""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch

from esbnn_core.kernels.cpu.library import Library

LINE = 64
"""Bytes of a cache line, where every buffer begins."""


class Step(IntEnum):
    """Kinds of steps, as interface.h numbers them; what each takes is there."""

    BINARY_CONV = 0
    CLEAR = 1
    REAL_CONV = 2
    AVERAGE_POOL = 3
    MEANS = 4
    TILED_AFFINE = 5


class Given(NamedTuple):
    """An address that each run gives."""

    number: int


class Buffer:
    """Memory that only a program's own steps use; buffers that are not in use at the same time share it.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size


Place = int | Given | Buffer
"""Where a step reads or writes; a whole number is the address of a tensor that stays."""


class Program(NamedTuple):
    """Steps that are ready to run, by several threads at once.

    Attributes:
        library: that runs it.
        code: the argument of esbnn_program.
        workspace: bytes of its buffers.
        bases: struct of the addresses.
    """

    library: Library
    code: bytes
    workspace: int
    bases: struct.Struct

    def run(self, *given: int) -> None:
        """Run it with the addresses that it is given, in the order of their numbers.

        Raises:
            MemoryError: too little memory.
        """
        work = torch.empty(self.workspace, dtype=torch.uint8) if self.workspace else None
        bases = self.bases.pack(0, 0 if work is None else work.data_ptr(), *given)
        if self.library.handle.esbnn_program(self.library.path, self.code, bases):
            raise MemoryError("no memory for the packed activations of this call")


class Recorder:
    """Steps of a program in the making."""

    def __init__(self) -> None:
        self.steps: list[tuple[Step, Sequence[int], Sequence[Place]]] = []

    def add(self, kind: Step, numbers: Sequence[int], places: Sequence[Place]) -> None:
        """Append a step."""
        self.steps.append((kind, numbers, places))

    def finish(
        self, library: Library, threads: int, given: int, bound: Mapping[Buffer, Given] | None = None
    ) -> Program:
        """The program.

        Args:
            library: that runs it.
            threads: of each step; those of a binary convolution are among its own numbers.
            given: how many addresses a run gives.
            bound: buffers that are memory of the caller's.
        """
        bound = bound or {}
        offsets, workspace = self._offsets(bound)
        numbers = [threads, len(self.steps)]
        for kind, own, places in self.steps:
            numbers += (kind, len(own), len(places), *own)
            for place in places:
                place = bound.get(place, place) if isinstance(place, Buffer) else place
                if isinstance(place, Given):
                    numbers += (2 + place.number, 0)
                elif isinstance(place, Buffer):
                    numbers += (1, offsets[place])
                else:
                    numbers += (0, place)
        return Program(library, struct.pack(f"{len(numbers)}q", *numbers), workspace, struct.Struct(f"{2 + given}Q"))

    def _offsets(self, bound: Mapping[Buffer, Given]) -> tuple[dict[Buffer, int], int]:
        """Where each buffer begins, the lowest place that is free while it is in use, and the end of all."""
        uses: dict[Buffer, tuple[int, int]] = {}
        for number, (_, _, places) in enumerate(self.steps):
            for place in places:
                if isinstance(place, Buffer) and place not in bound:
                    uses[place] = (uses.get(place, (number, 0))[0], number)
        offsets: dict[Buffer, int] = {}
        end = 0
        for buffer, (first, _) in uses.items():  # in the order of their first steps
            at = 0
            for other in sorted((o for o in offsets if uses[o][1] >= first), key=offsets.__getitem__):
                if offsets[other] < at + buffer.size:
                    at = max(at, offsets[other] + _lines(other.size))
            offsets[buffer] = at
            end = max(end, at + _lines(buffer.size))
        return offsets, end


def _lines(size: int) -> int:
    """The size in whole cache lines."""
    return -(-size // LINE) * LINE
