"""Units in a row as one call of the C library, which saves Python's time between them.

A row is learnt once for a shape of its input (segment.py). A shortcut that torch runs divides it: a program ends there,
torch is called, and the next program goes on.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # type: ignore[attr-defined]

from esbnn_core.kernels import cpu, operators
from esbnn_core.kernels.cpu.real_steps import Map
from esbnn_core.kernels.direct import unwatched
from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.segment import SOURCE, Recording, Segment, X
from esbnn_core.packed.units import PackedUnit
from esbnn_core.packed.watch import Watch, hooked

LAST = torch.channels_last


class Row:
    """The rows that a chain knows; a copy of the chain begins without any.

    Attributes:
        known: by the looks of an input its segments, or over which modules it is no row as long as they are the same.
    """

    def __init__(self) -> None:
        self.known: dict[Any, list[Segment] | Watch] = {}

    def __deepcopy__(self, memo: Any) -> "Row":
        return Row()

    def __reduce__(self) -> tuple[type["Row"], tuple[()]]:
        return Row, ()

    def run(
        self, chain: nn.Module, x: Tensor, bits: Tensor | None, following: PackedLayer | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """Output and signs for `following` of a chain of units alone, or None where it has to call them one by one."""
        if not unwatched(x) or not _fits(x) or _has_any_global_hook():  # in this order: a compiler follows no further
            return None
        library = cpu.choose()[0]
        if library is None:
            return None
        look = None if bits is None else bits.shape
        key = (x.shape, x.stride(), look, following, library, torch.get_num_threads())
        segments = self.known.get(key)
        if segments is None:
            return self._learn(key, chain, x, bits, following)
        if isinstance(segments, Watch):
            return None if segments.same() else self._learn(key, chain, x, bits, following)
        first = segments[0].watch
        if first.hooked():
            return None
        if not first.same():
            return self._learn(key, chain, x, bits, following)
        for number, segment in enumerate(segments):
            residual = None
            if segment.shortcut is not None:
                if segment.watch.hooked():
                    return _walk(_left(segments[number:]), x, bits, following)
                residual = segment.shortcut(x)
                if not segment.watch.same() or not _expected(residual, segment):
                    self.known.pop(key, None)
                    return _walk(_left(segments[number:]), x, bits, following, residual)
            x, bits = segment.run(x, bits, residual)
        return x, bits

    def _learn(
        self, key: Any, chain: nn.Module, x: Tensor, bits: Tensor | None, following: PackedLayer | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """As run, and note for the next time what it takes."""
        units: list[Any] = []
        chains: list[nn.Module] = []
        if not _flatten(chain, units, chains) or len(units) < 2:
            return None
        if hooked(*chains) or not all(map(_plain, units)):
            return None
        after = [*units[1:], following]
        if not all(unit.hands_to(then) for unit, then in zip(units, after, strict=True) if then is not None):
            self._keep(key, Watch([*chains, *units], owners=[chain]))
            return None
        recording = Recording(Map(X, x.shape), SOURCE if bits is not None else X, chains, chain)  # type: ignore[arg-type]
        handed = bits
        for number, (unit, then) in enumerate(zip(units, after, strict=True)):
            shortcut = unit._modules["shortcut"]
            residual = None if shortcut is None else shortcut(x)
            if residual is not None and (type(residual) is not Tensor or residual.requires_grad):
                return _walk(units[number:], x, handed, following, residual)
            call = unit.call(x, handed, unit.prelu, residual, unit.rprelu, then)
            x, handed = operators.serve(call)
            recording.add(unit, then, call, (x.shape[2], x.shape[3]))
        self._keep(key, recording.finish() or Watch([*chains, *units], owners=[chain]))
        return x, handed

    def _keep(self, key: Any, known: list[Segment] | Watch) -> None:
        """Few shapes are in use at a time, and none is worth much."""
        if len(self.known) >= 16:
            self.known.clear()
        self.known[key] = known


def _flatten(chain: nn.Module, units: list[Any], chains: list[nn.Module]) -> bool:
    """Gather the units of a chain and of the chains in it, and these; False if it has anything else."""
    for child in chain._modules.values():
        if type(child) is PackedUnit:
            units.append(child)
        elif child is None or type(child) is not type(chain) or not _flatten(child, units, chains):
            return False
        else:
            chains.append(child)
    return True


def _walk(
    units: list[Any], x: Tensor, bits: Tensor | None, following: PackedLayer | None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Output and signs of units called one after the other; the first one's residual may be there already."""
    for unit, then in zip(units, [*units[1:], following], strict=True):
        hands = unit.hands_to(then)
        if residual is not None:
            x, bits = unit.convolve(x, bits, unit.prelu, residual, unit.rprelu, then if hands else None)
            x, residual = x if hands else unit.act(x), None
        elif hands:
            x, bits = unit(x, bits, then)
        else:
            x = unit(x, bits)
        bits = bits if hands else None
    return x, bits


def _left(segments: list[Segment]) -> list[PackedUnit]:
    return [unit for segment in segments for unit in segment.units]


def _expected(residual: Any, segment: Segment) -> bool:
    """Whether what torch gave for a residual is what the program reads."""
    if residual is None:
        return segment.shortcut is None
    plain = type(residual) is Tensor and residual.is_cpu and residual.dtype is torch.float32
    return plain and not residual.requires_grad and (residual.shape, residual.stride()) == segment.look


def _fits(x: Tensor) -> bool:
    """Whether it is a float32 map in channels_last and in no other layout."""
    plain = x.dtype is torch.float32 and x.dim() == 4 and x.shape[2:] != (1, 1) and x.shape[1] != 1
    return plain and x.is_contiguous(memory_format=LAST)


def _plain(unit: PackedUnit) -> bool:
    """Whether the unit's epilogue is everything between it and the next one."""
    act = unit._modules["act"]
    return act is not None and type(act) is nn.Identity and not hooked(unit, act)
