"""Units in a row as one call of the C library, which saves Python's time between them."""

import operator
import struct
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # type: ignore[attr-defined]

from esbnn_core.kernels import ConvCall, cpu, operators
from esbnn_core.kernels.direct import unwatched
from esbnn_core.packed.layers import PackedLayer
from esbnn_core.packed.units import PackedUnit

LAST = torch.channels_last


class Known:
    """What is kept of a row of calls: all but the tensors that differ from call to call.

    Attributes:
        parts: the tensors that stay, each with the dict and the name under which its module has it.
        addresses: of these tensors.
    """

    def __init__(self, calls: list[ConvCall], plans: list[cpu.Plan], parts: list[tuple[Any, str]]) -> None:
        self.parts, self.tensors = parts, [held[name] for held, name in parts]
        self.addresses = [0 if t is None else t.data_ptr() for t in self.tensors]
        self.library, self.y, self.bits = plans[0].library, plans[0].y, [plan.bits for plan in plans]
        self.sizes, self.count = b"".join(plan.sizes for plan in plans), len(plans)
        self.pack = struct.Struct(f"{12 * self.count}Q").pack
        self.fixed, self.added = [], [call.epilogue.residual is not None for call in calls]
        for _, _, _, (scale, bias, prelu, _, rprelu, sign_shift, _, _), shift, lanes in calls:
            self.fixed.append([0 if t is None else t.data_ptr() for t in (shift, lanes, scale, bias, prelu)])
            self.fixed.append([0 if t is None else t.data_ptr() for t in (rprelu, sign_shift)])

    def holds(self) -> bool:
        """Whether every tensor is still the one that it was, where it was."""
        now = [held[name] for held, name in self.parts]
        if not all(map(operator.is_, now, self.tensors)):
            return False
        return [0 if t is None else t.data_ptr() for t in now] == self.addresses

    def run(self, source: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The last unit's output and its signs. Every unit but the first adds to the map that it writes over."""
        size, strides, dtype = self.y
        y = torch.empty_strided(size, strides, dtype=dtype)
        inner = torch.empty((2, *self.bits[0]), dtype=torch.int32)  # type: ignore[misc]
        last = torch.empty(0 if self.bits[-1] is None else self.bits[-1], dtype=torch.int32)
        at, first = y.data_ptr(), inner.data_ptr()
        places = (first, first + inner.stride(0) * 4)
        read, before = source.data_ptr(), 0 if residual is None else residual.data_ptr()
        numbers: list[int] = []
        for i in range(self.count):
            write = places[i % 2] if i + 1 < self.count else (last.data_ptr() if last.numel() else 0)
            numbers += (read, *self.fixed[2 * i], before, *self.fixed[2 * i + 1], at, 0, write)
            read, before = write, at if i + 1 < self.count and self.added[i + 1] else 0
        pointers = self.pack(*numbers)
        if self.library.handle.esbnn_conv_row(self.library.path, self.count, self.sizes, pointers):
            raise MemoryError(f"no memory for the packed activations of {size[0]} images")
        return y, last


class Row:
    """The calls that a chain knows; a copy of the chain begins without any."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[list[nn.Module], Known]] = {}
        self.unfit: dict[Any, list[nn.Module]] = {}

    def __deepcopy__(self, memo: Any) -> "Row":
        return Row()

    def __reduce__(self) -> tuple[type["Row"], tuple[()]]:
        return Row, ()

    def run(
        self, chain: nn.Module, x: Tensor, bits: Tensor | None, following: PackedLayer | None
    ) -> tuple[Tensor, Tensor] | None:
        """Output and signs for `following` of a chain of units alone, or None where it has to call them one by one."""
        units: list[Any] = list(chain._modules.values())
        if not unwatched(x) or len(units) < 2 or not _plain(units, x):  # in this order: a compiler follows no further
            return None
        library = cpu.choose()[0]
        if library is None:
            return None
        shape = (x.shape, None if bits is None else bits.shape, following)
        if self.unfit.get(shape) == units:
            return None
        shortcut = units[0].shortcut
        residual = None if shortcut is None else shortcut(x)
        if residual is not None and (type(residual) is not Tensor or residual.requires_grad):
            return None
        look = None if residual is None else (residual.shape, residual.stride(), residual.dtype, residual.is_cpu)
        key = (shape, x.stride(), look, library, torch.get_num_threads())
        held = self.known.get(key)
        if held is not None and held[0] == units and held[1].holds():
            return held[1].run(x if bits is None else bits, residual)
        after = [*units[1:], following]
        if all(unit.hands_to(then) for unit, then in zip(units, after, strict=True) if then is not None):
            y, handed, found = _one_by_one(units, after, x, bits, residual)
            _keep(self.unfit, shape, units) if found is None else _keep(self.known, key, (units, found))
            return y, handed
        _keep(self.unfit, shape, units)
        return None


def _keep(of: dict[Any, Any], key: Any, value: Any) -> None:
    """Few shapes are in use at a time, and none is worth much."""
    if len(of) >= 16:
        of.clear()
    of[key] = value


def _one_by_one(
    units: list[Any], after: list[Any], x: Tensor, bits: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Known | None]:
    """Output and signs of units called one after the other, and what lets them be one call: None if they cannot."""
    calls: list[ConvCall] = []
    plans: list[cpu.Plan | None] = []
    for unit, then in zip(units, after, strict=True):
        call = unit.call(x, bits, unit.prelu, residual, unit.rprelu, then)
        x, bits = operators.serve(call)
        calls.append(call)
        plans.append(cpu.find_plan(call, (x.shape[2], x.shape[3])))
        residual = None if then is None or then.shortcut is None else x
    assert bits is not None
    found = [plan for plan in plans if plan is not None and not plan.zeroed]
    # one map that they write over, and signs of one size
    alike = len({plan.y for plan in found}) == 1 and len({plan.bits for plan in found[:-1]}) == 1
    if len(found) < len(units) or not alike:
        return x, bits, None
    names = ("weight_bits", "scale", "bias", "prelu", "rprelu", "shift", "lanes")
    parts = [(unit._buffers, name) for unit in units for name in names]
    if after[-1] is not None:
        parts.append((after[-1]._buffers, "shift"))
    return x, bits, Known(calls, found, parts)


def _plain(units: list[Any], x: Tensor) -> bool:
    """Whether they are units whose epilogues are everything between them, on a float32 map in channels_last."""
    if x.dtype is not torch.float32 or x.dim() != 4 or x.shape[2:] == (1, 1) or not x.is_contiguous(memory_format=LAST):
        return False
    if x.shape[1] == 1 or _has_any_global_hook():
        return False
    for number, unit in enumerate(units):
        if type(unit) is not PackedUnit or _hooked(unit):
            return False
        shortcut, act = unit._modules["shortcut"], unit._modules["act"]
        if type(act) is not nn.Identity or _hooked(act):
            return False
        if number and shortcut is not None and (type(shortcut) is not nn.Identity or _hooked(shortcut)):
            return False
    return True


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
