"""Steps of training on bits as CUDA kernels (training.cu, norm.cu): the calls of kernels/training.py.

As in the CPU's library the arithmetic is float32, maps may be float32, bfloat16 or float16, and every step is rounded
on its own; so maps are the CPU's in every bit, and sums over rows are the same in every run. Each function returns None
where the kernels do not serve and torch has to: another dtype, a traced tensor, an old device, no compiler. Nothing
waits for the device.
"""

import struct

import torch
from torch import Tensor, nn

from esbnn_core.kernels import cuda
from esbnn_core.kernels.cpu.training import RULES
from esbnn_core.kernels.cuda.division import MOST_TURNS, SLOTS, Division, add_blocks, divide
from esbnn_core.kernels.cuda.launch import TYPES, Device
from esbnn_core.kernels.cuda.library import Kernel
from esbnn_core.kernels.norm import NormCall
from esbnn_core.kernels.tail import ACTIVATIONS, TailSteps, all_single

KINDS = {dtype: number for dtype, number in TYPES.items() if dtype.is_floating_point}
SUMS = {torch.int32: TYPES[torch.int32], torch.int16: 4}

TAIL = struct.Struct("13Q6i2f")
STATISTICS = struct.Struct("6Q2i")
ESTIMATOR = struct.Struct("7Q4if4i4x")
SIGNS = struct.Struct("4Q5i4x")
MOMENTS = struct.Struct("2Qi4x")
"""The kernels' arguments after their struct Rows."""
NORM = struct.Struct("9Qq2d2i")
NORM_THREADS = 64


def _device(*tensors: Tensor | None) -> Device | None:
    """The device, where all tensors are its to read: of torch's own class, on it and contiguous."""
    if torch.compiler.is_compiling():
        return None
    given = [t for t in tensors if t is not None]
    for t in given:
        if type(t) not in (Tensor, nn.Parameter) or t.device != given[0].device or not t.is_contiguous():
            return None
    return cuda._serving(given[0])


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def moments(sums: Tensor, largest: int) -> Tensor | None:
    """Exact sums, and sums of squares, over rows: (2, O) int64.

    Args:
        sums: rows (M, O) int32 or int16.
        largest: no |sum| is above it.
    """
    known = sums.dtype in SUMS and sums.shape[0] * largest * largest < 1 << 63
    device, division = _device(sums) if known else None, divide(*sums.shape)
    if device is None or division is None:
        return None
    both = torch.zeros(2, sums.shape[1], dtype=torch.int64, device=sums.device)
    arguments = MOMENTS.pack(sums.data_ptr(), both.data_ptr(), SUMS[sums.dtype])
    division.launch(device, "moments", division.packed(sums) + arguments)
    return both


def norm(
    call: NormCall,
    beta: Tensor | None,
    shift_in: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> Tensor | None:
    """What a tail starts with, in parts of call.forward_sizes(), float32; arguments as cpu.training.norm has them."""
    given = (call.moments, call.scale, call.gamma, beta, shift_in, *(running or (None, None)))
    device = _device(*given) if call.served(*given[3:]) else None
    if device is None:
        return None
    made = torch.empty(sum(call.forward_sizes()), dtype=torch.float32, device=call.moments.device)
    _launch_norm(device, "batch_norm", call, (*given, None, made), momentum)
    return made


def norm_gradients(call: NormCall, totals: Tensor) -> Tensor | None:
    """Gradients in parts of call.backward_sizes(), float32; totals (6, C') float64 are those of a tail's backward."""
    device = _device(call.moments, call.scale, call.gamma, totals) if call.served() else None
    if device is None:
        return None
    made = torch.empty(sum(call.backward_sizes()), dtype=torch.float32, device=call.moments.device)
    given = (call.moments, call.scale, call.gamma, *[None] * 4, totals, made)
    _launch_norm(device, "batch_norm_gradients", call, given, 0.0)
    return made


def _launch_norm(
    device: Device, function: str, call: NormCall, tensors: tuple[Tensor | None, ...], momentum: float
) -> None:
    arguments = NORM.pack(*_addresses(*tensors), call.rows, call.eps, momentum, call.filters, call.copies)
    blocks = (-(-call.filters // NORM_THREADS), 1)
    device.launch(Kernel(function, source="norm"), blocks, NORM_THREADS, arguments)


class TailCall(TailSteps):
    """A tail by the kernels."""

    def _divided(
        self, sums: Tensor, residual: Tensor | None, grad: Tensor | None, kind: torch.dtype, most: int
    ) -> tuple[Device, Division] | None:
        """The device and the division of the sums' rows, where the kernels serve."""
        known = self.served and sums.dtype in SUMS and kind in KINDS
        known = known and (residual is None or residual.dtype in KINDS)
        device = _device(sums, residual, grad, *self.vectors) if known else None
        division = divide(sums.shape[0], sums.shape[1], most)
        return None if device is None or division is None else (device, division)

    def _launch(
        self, serving: tuple[Device, Division], function: str, sums: Tensor, y: Tensor, *ends: Tensor | None
    ) -> None:
        """Launch a kernel; `ends` are the residual, the gradients of sums and residual, and the blocks' totals."""
        device, division = serving
        residual, *_ = ends
        arguments = TAIL.pack(
            *_addresses(sums, *self.vectors, residual, y, *ends[1:]),
            *(self.copies, SUMS[sums.dtype], self.act),
            *(0 if residual is None else KINDS[residual.dtype], KINDS[y.dtype], self._used(), *self.limits),
        )
        division.launch(device, function, division.packed(sums, y, *self.vectors, *ends[:3]) + arguments)

    def forward(self, sums: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        serving = self._divided(sums, residual, None, dtype, MOST_TURNS)
        if serving is None:
            return None
        y = torch.empty(sums.shape[0], self.channels, dtype=dtype, device=sums.device)
        self._launch(serving, "tail", sums, y, residual, None, None, None)
        return y

    def backward(
        self, grad: Tensor, sums: Tensor, residual: Tensor | None, wants_residual: bool
    ) -> tuple[Tensor, Tensor | None, Tensor] | None:
        residual = None if self.act == ACTIVATIONS["none"] else residual
        serving = self._divided(sums, residual, grad, grad.dtype, SLOTS if self.copies > 1 else MOST_TURNS)
        if serving is None:
            return None
        device, division = serving
        sums_grad = torch.empty(sums.shape, dtype=torch.float32, device=sums.device)
        residual_grad = torch.empty(grad.shape, dtype=torch.float32, device=sums.device) if wants_residual else None
        partials = torch.empty(6, division.blocks, self.channels, dtype=torch.float32, device=sums.device)
        self._launch(serving, "tail_gradients", sums, grad, residual, sums_grad, residual_grad, partials)
        return sums_grad, residual_grad, add_blocks(device, partials, self._used())

    def _used(self) -> int:
        """Which totals the kernel writes, as bits (enum Total of tail.cuh)."""
        inner, acts = self.vectors[3] is not None, self.act != ACTIVATIONS["none"]
        prelu = self.act == ACTIVATIONS["prelu"]
        return 3 | inner << 2 | (inner and acts) << 3 | prelu << 4 | acts << 5


def add_statistics(
    grad: Tensor, sums: Tensor, centre: Tensor, constant: Tensor, slope: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """grad + constant + slope * (sums - centre), rows (M, O) of `dtype`; in place where that is grad's, float32."""
    vectors = (centre, constant, slope)
    known = all_single(grad, *vectors) and sums.dtype in SUMS and dtype in KINDS
    device, division = _device(grad, sums, *vectors) if known else None, divide(*sums.shape)
    if device is None or division is None:
        return None
    to = grad if dtype == torch.float32 else torch.empty(grad.shape, dtype=dtype, device=grad.device)
    tensors = (sums, *vectors, grad, to)
    arguments = STATISTICS.pack(*_addresses(*tensors), SUMS[sums.dtype], KINDS[dtype])
    division.launch(device, "statistics", division.packed(*tensors) + arguments)
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
    """From the gradient of signs to that of their input, plus `onto`: as cpu.training.estimator."""
    kinds = [torch.float32 if t is None else t.dtype for t in (grad, x, onto)]
    bits, groups = mask if mask is not None else (None, 1)
    known = all(kind in KINDS for kind in (*kinds, dtype)) and all_single(shift)
    device, division = _device(grad, x, shift, bits, onto) if known else None, divide(*grad.shape)
    if device is None or division is None:
        return None
    channels = grad.shape[1]
    to = next((t for t in (onto, grad) if t is not None and t.dtype == dtype), None)
    to = torch.empty(grad.shape, dtype=dtype, device=grad.device) if to is None else to
    partials = grad.new_empty(1, division.blocks, channels, dtype=torch.float32) if with_total else None
    tensors = (grad, x, shift, bits, onto, to)
    arguments = ESTIMATOR.pack(
        *_addresses(*tensors, partials),
        *(*_words(bits, channels, groups), RULES[rule], clip),
        *(KINDS[kind] for kind in (*kinds, dtype)),
    )
    division.launch(device, "estimator", division.packed(grad, x, shift, onto, to) + arguments)
    total = grad.new_empty(0, dtype=torch.float64) if partials is None else add_blocks(device, partials, 1)[0]
    return to, total


def _words(bits: Tensor | None, channels: int, groups: int) -> tuple[int, int, int]:
    """struct Packed of signs.cuh: channels and words of a group, and words of a row."""
    row = 0 if bits is None else bits.shape[-1]
    return channels // groups, row // groups, row


def signs(x: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """sign(x + shift) of rows (M, C) as +-1 of `dtype`; shift (C,) float32 or None."""
    known = x.dtype in KINDS and all_single(shift)
    return _signs(x, shift, None, (x.shape[0], x.shape[1]), 1, dtype) if known else None


def unpack(bits: Tensor, channels: int, groups: int, dtype: torch.dtype) -> Tensor | None:
    """Packed bits (..., words) -> (..., channels) +-1 of `dtype`."""
    done = _signs(None, None, bits, (bits[..., 0].numel(), channels), groups, dtype)
    return None if done is None else done.view(*bits.shape[:-1], channels)


def _signs(
    x: Tensor | None,
    shift: Tensor | None,
    bits: Tensor | None,
    shape: tuple[int, int],
    groups: int,
    dtype: torch.dtype,
) -> Tensor | None:
    device, division = _device(x, shift, bits) if dtype in KINDS else None, divide(*shape)
    if device is None or division is None:
        return None
    given = x if bits is None else bits
    assert given is not None
    y = torch.empty(shape, dtype=dtype, device=given.device)
    kind = KINDS[torch.float32 if x is None else x.dtype]
    arguments = SIGNS.pack(*_addresses(x, shift, bits, y), *_words(bits, shape[1], groups), kind, KINDS[dtype])
    division.launch(device, "signs", division.packed(x, shift, y) + arguments)
    return y
