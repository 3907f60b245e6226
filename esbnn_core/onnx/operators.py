"""The operators of the domain `esbnn` in a file, and what torch's exporter writes for those of torch.library.

    y, bits = BinaryConv2d(x, weight, scale, bias, prelu?, residual?, rprelu?, sign_shift?, shift?)
    bits = PackSign(x, shift?)

Their arguments are those of esbnn_core.kernels, whose contract they keep. Maps have their channels last, (N, H, W, C),
and a binary linear layer is a convolution over one long row. kernels/cpu/ort_operators.cpp implements them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.values import Op, Opset

op: Any = opset18
DOMAIN, VERSION = "esbnn", 1
CONVOLUTION, SIGN = "BinaryConv2d", "PackSign"
CONVOLUTION_INPUTS = ("x", "weight", "scale", "bias", "prelu", "residual", "rprelu", "sign_shift", "shift")
CONVOLUTION_NUMBERS = ("channels", "pad_value", "groups", "copies", "sign_groups")
CONVOLUTION_PAIRS = ("stride", "padding", "dilation")
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Permutations of a map: channels to the end, and back."""

FLOAT, BITS, EITHER = "tensor(float)", "tensor(int32)", "T"


def _value(name: str, kind: str, optional: bool = False) -> OpSchema.FormalParameter:
    option = OpSchema.FormalParameterOption
    return OpSchema.FormalParameter(name, kind, param_option=option.Optional if optional else option.Single)


def _number(name: str, several: bool = False) -> OpSchema.Attribute:
    return OpSchema.Attribute(name, OpSchema.AttrType.INTS if several else OpSchema.AttrType.INT, "", required=True)


_kinds = {"x": EITHER, "weight": BITS}
_CONVOLUTION = OpSchema(
    CONVOLUTION,
    DOMAIN,
    VERSION,
    inputs=[_value(name, _kinds.get(name, FLOAT), place > 3) for place, name in enumerate(CONVOLUTION_INPUTS)],
    outputs=[_value("y", FLOAT), _value("bits", BITS, True)],
    type_constraints=[(EITHER, [FLOAT, BITS], "")],
    attributes=[*map(_number, CONVOLUTION_NUMBERS), *(_number(name, True) for name in CONVOLUTION_PAIRS)],
)
_SIGN = OpSchema(
    SIGN,
    DOMAIN,
    VERSION,
    inputs=[_value("x", FLOAT), _value("shift", FLOAT, True)],
    outputs=[_value("bits", BITS)],
    attributes=[_number("groups")],
)
_opset = Opset(DOMAIN, VERSION)
_convolve, _sign = Op(_opset, CONVOLUTION, _CONVOLUTION), Op(_opset, SIGN, _SIGN)


def _binary_conv2d(
    x: Any,
    weight: Any,
    channels: int,
    stride: Sequence[int],
    padding: Sequence[int],
    pad_value: int,
    dilation: Sequence[int],
    groups: int,
    copies: int,
    scale: Any,
    bias: Any,
    prelu: Any,
    residual: Any,
    rprelu: Any,
    sign_shift: Any,
    sign_groups: int,
    lanes: Any = None,
    shift: Any = None,
    out_dtype: int | None = None,
) -> Any:
    """esbnn::binary_conv2d with scale and bias, in float32; lanes are made by the runtime's own operator."""
    if x.dtype != ir.DataType.INT32:
        x = op.Transpose(x, perm=TO_LAST)
    if residual is not None:
        residual = op.Transpose(residual, perm=TO_LAST)
    vectors = (scale, bias, prelu, residual, rprelu, sign_shift, shift)
    numbers = dict(zip(CONVOLUTION_NUMBERS, (channels, pad_value, groups, copies, sign_groups), strict=True))
    pairs = dict(zip(CONVOLUTION_PAIRS, map(list, (stride, padding, dilation)), strict=True))
    y, bits = _convolve(x, _stored(weight), *vectors, **numbers, **pairs)
    return op.Transpose(y, perm=TO_FIRST), bits


def _stored(weight: Any) -> Any:
    """The words (O, W) of a linear layer that a token unit reads as (O, 1, 1, W); other weights as they are.

    The operators take both, and weights have to lie in the file: torch folds the step between only where it is small.
    """
    producer = weight.producer()
    while producer is not None and producer.op_type == "Unsqueeze":
        weight = producer.inputs[0]
        producer = weight.producer()
    return weight


def _pack_sign(x: Any, shift: Any, groups: int, channel_dim: int) -> Any:
    """esbnn::pack_sign."""
    return _sign(op.Transpose(x, perm=TO_LAST) if channel_dim == 1 else x, shift, groups=groups)


def _binary_linear(
    x: Any, weight: Any, features: int, groups: int, copies: int, scale: Any, bias: Any, lanes: Any = None
) -> Any:
    """esbnn::binary_linear with scale and bias."""
    filters, words = weight.shape
    row = op.Reshape(x, op.Constant(value_ints=[1, 1, -1, groups * words]))
    numbers = dict(zip(CONVOLUTION_NUMBERS, (features, -1, groups, copies, 0), strict=True))
    y, _ = _convolve(
        *(row, weight, scale, bias, None, None, None, None, None),
        **numbers,
        **{"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]},
    )
    outer = op.Shape(x, start=0, end=-1)
    return op.Reshape(y, op.Concat(outer, op.Constant(value_ints=[copies * filters]), axis=0))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch.onnx.export writes for each operator of torch.library."""
    return {
        torch.ops.esbnn.binary_conv2d.default: _binary_conv2d,
        torch.ops.esbnn.pack_sign.default: _pack_sign,
        torch.ops.esbnn.binary_linear.default: _binary_linear,
    }
