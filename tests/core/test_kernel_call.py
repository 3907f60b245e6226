"""The convolution's call object: its fields are the operator's arguments, each in its place."""

import inspect

import pytest
import torch

from esbnn_core import kernels
from esbnn_core.kernels import ConvCall, Epilogue, Geometry
from esbnn_core.kernels.call import call_of
from tests.helpers.operators import conv_arguments, gen


def test_the_call_has_the_operators_arguments_in_order() -> None:
    fields = ["x", "weight", *Geometry._fields, *Epilogue._fields[:-1], "lanes", "shift", Epilogue._fields[-1]]
    assert [argument.name for argument in torch.ops.esbnn.binary_conv2d.default._schema.arguments] == fields
    assert list(inspect.signature(call_of).parameters) == fields
    assert sorted(ConvCall._fields) == sorted(["geometry", "epilogue", "x", "weight", "lanes", "shift"])
    # every argument lands in the field of its name
    marks = [name if name not in ("stride", "padding", "dilation") else [name] for name in fields]
    made = call_of(*marks)
    found = made._asdict() | made.geometry._asdict() | made.epilogue._asdict()
    assert all(found[name] in (name, (name,)) for name in fields)


@pytest.mark.parametrize("steps", ["", "aprqst"])
@pytest.mark.parametrize("real", [False, True])
def test_the_function_is_the_operator(steps: str, real: bool) -> None:
    a = conv_arguments(steps, stride=2)
    g = gen(9)
    if real:
        a |= {"x": torch.randn(3, 40, 7, 5, generator=g), "shift": torch.randn(40, generator=g)}
    a |= {"lanes": kernels.lanes_of(a["weight"], 2), "out_dtype": torch.bfloat16 if steps else None}
    made = call_of(**a)
    got = kernels.binary_conv2d(*made)
    want = torch.ops.esbnn.binary_conv2d(**a)
    assert all(one.dtype == two.dtype and torch.equal(one, two) for one, two in zip(got, want, strict=True))
    bare = a | dict.fromkeys(Epilogue._fields) | {"sign_groups": 0}
    sums, bits = kernels.binary_conv2d(made.x, made.weight, made.geometry, shift=made.shift)
    assert torch.equal(sums, torch.ops.esbnn.binary_conv2d(**bare)[0]) and sums.dtype == torch.int32
    assert bits.numel() == 0
