"""Steps of training on bits in the native library, on rows of channels (training.cpp; interface.h has the calls).

The arithmetic is float32; maps may be float32, bfloat16 or float16. Sums over rows are the same for any number of
threads. Each function returns None, or False, where the library does not serve and torch has to: another dtype or
device, a traced tensor, or no library.
"""

import ctypes
import functools
import struct

import torch
from torch import Tensor, nn

from esbnn_core.kernels import cpu
from esbnn_core.kernels.cpu.library import Library
from esbnn_core.kernels.norm import NormCall
from esbnn_core.kernels.tail import ACTIVATIONS, TailSteps, all_single

KINDS = cpu.KINDS
SUMS = {torch.int32: 0, torch.int16: 1}
RULES = {"identity": 0, "clip": 1, "poly2": 2, "mask": 3}
LARGEST = 46340
"""Of the sums whose squares `moments` adds up in int32."""


@functools.cache
def _prepared(library: Library) -> ctypes.CDLL:
    """The library's handle with the types of the calls."""
    handle, path, packed, pointer = library.handle, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
    handle.esbnn_train_tail.argtypes = [path, packed, packed]
    handle.esbnn_train_tail_backward.argtypes = [path, packed, packed, pointer]
    handle.esbnn_statistics.argtypes = [path, packed, packed]
    handle.esbnn_estimator.argtypes = [path, packed, packed, ctypes.c_float, pointer]
    handle.esbnn_signs.argtypes = [path, packed, packed]
    handle.esbnn_moments.argtypes = [path, packed, pointer, pointer]
    handle.esbnn_norm.argtypes = [packed, packed, packed]
    handle.esbnn_norm_gradients.argtypes = [packed, packed, ctypes.c_double]
    return handle


def served_by(*tensors: Tensor | None) -> Library | None:
    """The library, where all tensors are its to read: of torch's own class, on the CPU and contiguous."""
    if torch.compiler.is_compiling():
        return None
    for t in tensors:
        if t is not None and not (type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.is_contiguous()):
            return None
    return cpu.choose()[0]


def numbers_of(*numbers: int) -> bytes:
    return struct.pack(f"{len(numbers) + 1}q", *numbers, torch.get_num_threads())


def addresses_of(*tensors: Tensor | None) -> bytes:
    return struct.pack(f"{len(tensors)}Q", *(0 if t is None else t.data_ptr() for t in tensors))


def zeros(channels: int) -> Tensor:
    """A vector that the library reads in place of one that is left out; float32 and here, whatever torch's defaults."""
    return torch.zeros(channels, dtype=torch.float32, device="cpu")


def _check_memory(short: int, rows: int, channels: int) -> None:
    if short:
        raise MemoryError(f"no memory for the sums over {rows} rows of {channels} channels")


def moments(sums: Tensor, largest: int) -> Tensor | None:
    """Exact sums, and sums of squares, over rows: (2, O) int64.

    Args:
        sums: rows (M, O) int32 or int16.
        largest: no |sum| is above it.
    """
    rows, filters = sums.shape
    fits = rows * largest * largest < 1 << 63
    library = served_by(sums) if sums.dtype in SUMS and largest <= LARGEST and fits else None
    if library is None:
        return None
    both = torch.empty(2, filters, dtype=torch.int64)
    numbers = numbers_of(rows, filters, SUMS[sums.dtype], largest)
    short = _prepared(library).esbnn_moments(library.path, numbers, sums.data_ptr(), both.data_ptr())
    _check_memory(short, rows, filters)
    return both


def norm(
    call: NormCall,
    beta: Tensor | None,
    shift_in: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> Tensor | None:
    """What a tail starts with, in parts of call.forward_sizes(), float32.

    Args:
        call: the norm and the moments.
        beta: (C',) float32, the norm's bias, or None.
        shift_in: (C',) float32 that is added to the offset, or None.
        running: mean and variance (C',) float32, updated as the norm's forward would, or None.
        momentum: of these.
    """
    given = (call.moments, call.scale, call.gamma, beta, shift_in, *(running or (None, None)))
    library = served_by(*given) if call.served(*given[3:]) else None
    if library is None:
        return None
    made = torch.empty(sum(call.forward_sizes()), dtype=torch.float32, device="cpu")
    reals = struct.pack("2d", call.eps, momentum)
    _prepared(library).esbnn_norm(numbers_of(call.filters, call.copies, call.rows), addresses_of(*given, made), reals)
    return made


def norm_gradients(call: NormCall, totals: Tensor) -> Tensor | None:
    """Gradients in parts of call.backward_sizes(), float32; totals (6, C') float64 are those of a tail's backward."""
    given = (call.moments, call.scale, call.gamma, totals)
    library = served_by(*given) if call.served() else None
    if library is None:
        return None
    made = torch.empty(sum(call.backward_sizes()), dtype=torch.float32, device="cpu")
    numbers = numbers_of(call.filters, call.copies, call.rows)
    _prepared(library).esbnn_norm_gradients(numbers, addresses_of(*given, made), call.eps)
    return made


class TailCall(TailSteps):
    """A tail by the library."""

    def _prepare(self) -> None:
        # the library may be without a centre and the inner slopes, but not without what comes after these
        self.vectors[4:] = [zeros(self.channels) if t is None else t for t in self.vectors[4:]]
        self.low_and_high = (ctypes.c_float * 2)(*self.limits)

    def _pointers(self, sums: Tensor, *maps: Tensor | None) -> bytes:
        limits = struct.pack("Q", ctypes.addressof(self.low_and_high))
        return addresses_of(sums, *self.vectors) + limits + addresses_of(*maps)

    def _serve(self, sums: Tensor, y: Tensor, residual: Tensor | None) -> Library | None:
        known = sums.dtype in SUMS and y.dtype in KINDS and (residual is None or residual.dtype in KINDS)
        return served_by(sums, y, residual, *self.vectors) if known else None

    def _numbers(self, sums: Tensor, y: Tensor, residual: Tensor | None) -> bytes:
        kind = 0 if residual is None else KINDS[residual.dtype]
        return numbers_of(*sums.shape, self.copies, SUMS[sums.dtype], self.act, kind, KINDS[y.dtype])

    def forward(self, sums: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if not self.served or dtype not in KINDS:
            return None
        y = torch.empty(sums.shape[0], self.channels, dtype=dtype)
        library = self._serve(sums, y, residual)
        if library is None:
            return None
        pointers = self._pointers(sums, residual, y, None, None)
        short = _prepared(library).esbnn_train_tail(library.path, self._numbers(sums, y, residual), pointers)
        _check_memory(short, *y.shape)
        return y

    def backward(
        self, grad: Tensor, sums: Tensor, residual: Tensor | None, wants_residual: bool
    ) -> tuple[Tensor, Tensor | None, Tensor] | None:
        residual = None if self.act == ACTIVATIONS["none"] else residual
        library = self._serve(sums, grad, residual) if self.served else None
        if library is None:
            return None
        sums_grad = torch.empty(sums.shape, dtype=torch.float32)
        residual_grad = torch.empty(grad.shape, dtype=torch.float32) if wants_residual else None
        totals = torch.empty(6, self.channels, dtype=torch.float64)
        pointers = self._pointers(sums, residual, grad, sums_grad, residual_grad)
        numbers = self._numbers(sums, grad, residual)
        short = _prepared(library).esbnn_train_tail_backward(library.path, numbers, pointers, totals.data_ptr())
        _check_memory(short, *grad.shape)
        return sums_grad, residual_grad, totals


def add_statistics(
    grad: Tensor, sums: Tensor, centre: Tensor, constant: Tensor, slope: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """grad + constant + slope * (sums - centre), rows (M, O) of `dtype`; in place where that is grad's, float32."""
    vectors = (centre, constant, slope)
    known = all_single(grad, *vectors) and sums.dtype in SUMS and dtype in KINDS
    library = served_by(grad, sums, *vectors) if known else None
    if library is None:
        return None
    to = grad if dtype == torch.float32 else torch.empty(grad.shape, dtype=dtype)
    numbers = numbers_of(*sums.shape, SUMS[sums.dtype], KINDS[dtype])
    _prepared(library).esbnn_statistics(library.path, numbers, addresses_of(sums, *vectors, grad, to))
    return to


def estimator(
    rule: str,
    clip: float,
    grad: Tensor,
    x: Tensor | None,
    shift: Tensor | None,
    mask: tuple[Tensor, int] | None,
    onto: Tensor | None,
    dtype: torch.dtype,
    with_total: bool = True,
) -> tuple[Tensor, Tensor] | None:
    """From the gradient of signs to that of their input, plus `onto`.

    Args:
        rule: "identity", "clip", "poly2" or, where the estimator is a mask of bits, "mask".
        clip: half width of "clip".
        grad: rows (M, C); may be written over.
        x: rows (M, C), read by "clip" and "poly2".
        shift: (C,) float32 or None.
        mask: bits (..., words) as pack_sign packs them, and the groups.
        onto: rows (M, C) to which the gradient is added, or None; may be written over.
        dtype: of the result.
        with_total: whether to add up the rows.

    Returns:
        Rows (M, C), and the sum over rows without `onto`, (C,) float64, or an empty one.
    """
    kinds = [torch.float32 if t is None else t.dtype for t in (grad, x, onto)]
    bits, groups = mask if mask is not None else (None, 1)
    known = all(kind in KINDS for kind in (*kinds, dtype)) and all_single(shift)
    library = served_by(grad, x, shift, bits, onto) if known else None
    if library is None:
        return None
    rows, channels = grad.shape
    shift = zeros(channels) if shift is None else shift
    to = next((t for t in (onto, grad) if t is not None and t.dtype == dtype), None)
    to = torch.empty(grad.shape, dtype=dtype) if to is None else to
    words = 0 if bits is None else bits.shape[-1] // groups
    numbers = numbers_of(rows, channels, groups, words, RULES[rule], *(KINDS[kind] for kind in kinds), KINDS[dtype])
    pointers = addresses_of(grad, x, shift, bits, onto, to)
    total = torch.empty(channels if with_total else 0, dtype=torch.float64)
    at = total.data_ptr() if with_total else None
    short = _prepared(library).esbnn_estimator(library.path, numbers, pointers, clip, at)
    _check_memory(short, rows, channels)
    return to, total


def signs(x: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """sign(x + shift) of rows (M, C) as +-1 of `dtype`; shift (C,) float32 or None."""
    known = x.dtype in KINDS and dtype in KINDS and all_single(shift)
    library = served_by(x, shift) if known else None
    if library is None:
        return None
    y = torch.empty(x.shape, dtype=dtype)
    shift = zeros(x.shape[1]) if shift is None else shift
    numbers = numbers_of(*x.shape, 1, 0, KINDS[x.dtype], KINDS[dtype])
    _prepared(library).esbnn_signs(library.path, numbers, addresses_of(x, shift, None, y))
    return y


def unpack(bits: Tensor, channels: int, groups: int, dtype: torch.dtype) -> Tensor | None:
    """Packed bits (..., words) -> (..., channels) +-1 of `dtype`."""
    library = served_by(bits) if dtype in KINDS else None
    if library is None:
        return None
    y = torch.empty(*bits.shape[:-1], channels, dtype=dtype)
    words = bits.shape[-1] // groups
    numbers = numbers_of(y.numel() // channels, channels, groups, words, 0, KINDS[dtype])
    _prepared(library).esbnn_signs(library.path, numbers, addresses_of(None, None, bits, y))
    return y
