"""Units of a row, and those of their shortcuts that are our own kernels', recorded into programs of the C library."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.kernels import ConvCall, cpu
from esbnn_core.kernels.cpu.program import Buffer, Given, Place, Program, Recorder, Step
from esbnn_core.kernels.cpu.real_steps import Map
from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.pools import PackedAvgPool2d
from esbnn_core.packed.real import FoldedConv2d
from esbnn_core.packed.units import PackedUnit
from esbnn_core.packed.watch import Watch, hooked

SOURCE, X, RESIDUAL, Y, BITS = map(Given, range(5))
"""What the first unit reads (packed signs or x), x, its residual if torch made it; the last one's output and signs."""
ALWAYS = ("forward", "_modules")
"""Attributes of a real layer that are compared beside those of its RECORDED: nothing is put in their place."""


class Segment:
    """Units that are one program.

    Attributes:
        units: in their order.
        watch: over them.
        program: of them.
        shortcut: of the first unit, if torch runs it.
        look: shape and strides of the residual that it gives.
        y: size and strides of the last unit's output.
        bits: size of its signs, None where there are none.
    """

    def __init__(
        self,
        units: list[PackedUnit],
        watch: Watch,
        program: Program,
        shortcut: nn.Module | None,
        look: tuple[Any, Any] | None,
        y: tuple[tuple[int, ...], tuple[int, ...]],
        bits: tuple[int, ...] | None,
    ) -> None:
        self.units, self.watch, self.program = units, watch, program
        self.shortcut, self.look, self.y, self.bits = shortcut, look, y, bits

    def run(self, x: Tensor, bits: Tensor | None, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last unit's output and its signs."""
        y = torch.empty_strided(*self.y, dtype=torch.float32)
        handed = torch.empty(0 if self.bits is None else self.bits, dtype=torch.int32)
        start = x.data_ptr()
        source, before = start if bits is None else bits.data_ptr(), 0 if residual is None else residual.data_ptr()
        self.program.run(source, start, before, y.data_ptr(), handed.data_ptr())
        return y, handed


class Recording:
    """Segments in the making.

    Args:
        x: the first unit's input.
        source: what its convolution reads.
        chains: that the units are in, which the first segment's watch is over as well.
        outer: the chain that these are in.
    """

    def __init__(self, x: Map, source: Place, chains: list[nn.Module], outer: nn.Module) -> None:
        self.segments: list[Segment] = []
        self.fits = True
        self._begin(x, source)
        self.modules += chains
        self.owners.append(outer)

    def _begin(self, x: Map, source: Place) -> None:
        self.recorder = Recorder()
        self.x, self.source = x, source
        self.units: list[PackedUnit] = []
        self.then: PackedLayer | None = None
        self.modules: list[nn.Module] = []
        self.owners: list[nn.Module] = []
        self.real: list[nn.Module] = []
        self.shortcut: nn.Module | None = None
        self.look: tuple[Any, Any] | None = None
        self.end: tuple[cpu.Plan, Buffer, Buffer | None] | None = None

    def add(self, unit: PackedUnit, then: PackedLayer | None, call: ConvCall, out_size: tuple[int, int]) -> None:
        """The unit's call, which has been made."""
        plan = cpu.find_plan(call, out_size) if self.fits else None
        if plan is None or math.prod(plan.y[0]) == 0:
            self.fits = False
            return
        before = self._shortcut(unit, call.epilogue.residual)
        size = 4 * math.prod(plan.y[0])
        y = before if isinstance(before, Buffer) and before.size == size else Buffer(size)
        bits = None if plan.bits is None else Buffer(4 * math.prod(plan.bits))
        if bits is not None and plan.zeroed:
            self.recorder.add(Step.CLEAR, (bits.size,), (bits,))
        scale, bias, prelu, _, rprelu, sign_shift, _, _ = call.epilogue
        fixed = (call.shift, call.lanes, scale, bias, prelu, rprelu, sign_shift)
        addresses = [0 if t is None else t.data_ptr() for t in fixed]
        places = (self.source, *addresses[:5], before, *addresses[5:], y, 0, 0 if bits is None else bits)
        self.recorder.add(Step.BINARY_CONV, cpu.SHAPE.unpack(plan.sizes), places)
        self.units.append(unit)
        self.modules += [unit, unit.act]
        self.then = then
        self.x, self.source = Map(y, plan.y[0]), 0 if bits is None else bits  # type: ignore[arg-type]
        self.end = (plan, y, bits)

    def _shortcut(self, unit: PackedUnit, residual: Tensor | None) -> Place:
        """Where the unit's residual is, after the steps that make it."""
        shortcut = unit.shortcut
        if shortcut is None or residual is None:
            return 0
        at = len(self.recorder.steps)
        parts: list[nn.Module] = []
        made = _record(shortcut, self.recorder, self.x, parts)
        if made is not None and made.shape == tuple(residual.shape):
            self.modules += parts
            self.real += parts
            return made.place
        del self.recorder.steps[at:]
        if self.units:
            self._close()
            self._begin(Map(X, self.x.shape), SOURCE)
        self.shortcut, self.look = shortcut, (residual.shape, residual.stride())
        return RESIDUAL

    def _close(self) -> None:
        assert self.end is not None
        plan, y, bits = self.end
        bound = {y: Y} if bits is None else {y: Y, bits: BITS}
        program = self.recorder.finish(plan.library, torch.get_num_threads(), 5, bound)
        shift = [] if self.then is None else [(self.then._buffers, "shift")]
        constants = [(part, name) for part in self.real for name in (*getattr(part, "RECORDED", ()), *ALWAYS)]
        buffers = [part for part in (*self.units, *self.real) if part._buffers]
        watch = Watch(self.modules, buffers, {"weight_bits"}, shift, constants, self.owners)
        rest = (self.shortcut, self.look, plan.y[:2], plan.bits)
        self.segments.append(Segment(self.units, watch, program, *rest))

    def finish(self) -> list[Segment]:
        """All segments, none where a call was not one of the library's."""
        if not self.fits:
            return []
        self._close()
        return self.segments


def _record(module: nn.Module, recorder: Recorder, x: Map, parts: list[nn.Module]) -> Map | None:
    """A shortcut as steps of a program: the map that it gives, and its modules in `parts`. None where torch runs it."""
    parts.append(module)
    if hooked(module):
        return None
    if type(module) is nn.Identity:
        return x
    if type(module) is nn.Sequential:
        for child in module:
            made = _record(child, recorder, x, parts)
            if made is None:
                return None
            x = made
        return x
    if type(module) is FoldedConv2d:
        parts += [] if module.copies is None else [module.copies]
        return None if hooked(*parts) else module.record(recorder, x)
    return module.record(recorder, x) if type(module) is PackedAvgPool2d else None
