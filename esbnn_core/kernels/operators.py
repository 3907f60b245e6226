"""The operators of the torch.library namespace `esbnn`: checks, tracing, and the choice of an implementation.

They are defined with Library and not with custom_op, whose own bookkeeping takes as long as packing a small layer.
"""

from typing import Any

import torch
from torch import Tensor

from esbnn_core.kernels import cpu, cuda, reference
from esbnn_core.kernels.call import SCHEMA, ConvCall, call_of
from esbnn_core.kernels.checks import check_conv, check_linear, check_pack, words_of
from esbnn_core.kernels.linear import LINEAR_SCHEMA, long_row

PACK_SCHEMA = "pack_sign(Tensor x, Tensor? shift, SymInt groups, SymInt channel_dim) -> Tensor"


def _pack_sign(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    check_pack(x, shift, groups, channel_dim)
    pack = cuda.pack_sign if x.is_cuda else cpu.pack_sign
    bits = pack(x, shift, groups, channel_dim)
    return reference.pack_sign(x, shift, groups, channel_dim) if bits is None else bits


def _pack_sign_fake(x: Tensor, shift: Tensor | None, groups: int, channel_dim: int) -> Tensor:
    check_pack(x, shift, groups, channel_dim)
    words = words_of(x.shape[channel_dim], groups)
    kept = [size for dim, size in enumerate(x.shape) if dim != channel_dim % x.dim()]
    return x.new_empty([*kept, words], dtype=torch.int32)


_known: dict[object, tuple[tuple[int, int], cpu.Plan | None]] = {}
"""Output sizes and plans of calls that passed the checks: both take longer than a small layer."""


def serve(call: ConvCall) -> tuple[Tensor, Tensor]:
    """Check the call and run it on the implementation for its device; what looks like an earlier call is known."""
    x, weight, geometry, epilogue, shift, lanes = call
    scale, bias, prelu, residual, rprelu, sign_shift, sign_groups, out_dtype = epilogue
    tensors = (x, weight, scale, bias, prelu, residual, rprelu, sign_shift, shift, lanes)
    looks = [t if t is None else (t.shape, t.stride(), t.dtype, t.is_cpu) for t in tensors]
    # x and weight have to be on one device, which `is_cpu` does not tell of two GPUs
    devices = x.is_cpu or (x.device, weight.device)
    key = (*looks, geometry, sign_groups, out_dtype, devices, cpu.choose()[0], torch.get_num_threads())
    known = _known.get(key)
    if known is None:
        size = check_conv(call)
        if len(_known) >= 4096:
            _known.clear()
        known = _known[key] = (size, None if x.is_cuda else cpu.find_plan(call, size))
    size, plan = known
    if plan is not None:
        return cpu.run(plan, call)
    done = cuda.binary_conv2d(call, size) if x.is_cuda else cpu.binary_conv2d(call, size)
    return reference.binary_conv2d(call) if done is None else done


def _binary_conv2d(*arguments: Any) -> tuple[Tensor, Tensor]:
    return serve(call_of(*arguments))


def _binary_conv2d_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = call_of(*arguments)
    images, (height, width) = call.x.shape[0], check_conv(call)
    out, sign_groups = call.out_channels, call.epilogue.sign_groups
    y = call.x.new_empty([images, height, width, out], dtype=call.y_dtype).permute(0, 3, 1, 2)
    shape = [images, height, width, words_of(out, sign_groups)] if sign_groups else [0]
    return y, call.x.new_empty(shape, dtype=torch.int32)


def _binary_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    check_linear(x, weight, *rest[:5])
    call = long_row(x, weight, *rest)
    size = call.output_size()
    done = cuda.binary_conv2d(call, size) if x.is_cuda else cpu.binary_conv2d(call, size)
    if done is None:
        # as images of one pixel, which the reference walks in pieces
        done = reference.binary_conv2d(call._replace(x=call.x.transpose(0, 2)))
    y, _ = done
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], y.shape[1])


def _binary_linear_fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    check_linear(x, weight, *rest[:5])
    call = long_row(x, weight, *rest)
    return x.new_empty([*x.shape[:-1], call.out_channels], dtype=call.y_dtype)


LIBRARY = torch.library.Library("esbnn", "DEF")
for _schema, _serve, _fake in (
    (PACK_SCHEMA, _pack_sign, _pack_sign_fake),
    (SCHEMA, _binary_conv2d, _binary_conv2d_fake),
    (LINEAR_SCHEMA, _binary_linear, _binary_linear_fake),
):
    _name = _schema.split("(")[0]
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(_name, _serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"esbnn::{_name}", _fake, lib=LIBRARY)
