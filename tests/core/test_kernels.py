"""Packed operators: epilogue, memory layout, what they refuse, and their standing in torch's operator library."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import kernels
from esbnn_core.kernels import ConvCall, Epilogue, Geometry, reference
from esbnn_core.kernels.call import call_of
from tests.helpers import paths

ORDER = (
    "x", "weight", "channels", "stride", "padding", "pad_value", "dilation", "groups", "copies",
    "scale", "bias", "prelu", "residual", "rprelu", "sign_shift", "sign_groups",
)  # fmt: skip


@pytest.fixture(params=paths.ALL, autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.force(request.param, monkeypatch)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def conv_arguments(
    steps: str = "", channels: int = 40, filters: int = 6, groups: int = 2, copies: int = 2, seed: int = 0,
    dtype: torch.dtype = torch.float32, size: tuple[int, int, int] = (3, 7, 5), pad_value: int = 0, stride: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Arguments by name; `steps` names the optional ones: a(ffine) p(relu) r(esidual) q (rprelu) s(ign) t (shift)."""
    g, out = gen(seed), copies * filters
    batch, height, width = size

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    sides = [(side + 2 - 3) // stride + 1 for side in (height, width)]
    return {
        "x": kernels.pack_sign(randn(batch, channels, height, width), None, groups, 1),
        "weight": kernels.pack_sign(randn(filters, channels // groups, 3, 3), None, 1, 1),
        "channels": channels,
        "stride": [stride, stride],
        "padding": [1, 1],
        "pad_value": pad_value,
        "dilation": [1, 1],
        "groups": groups,
        "copies": copies,
        "scale": randn(out) if "a" in steps else None,
        "bias": randn(out) if "a" in steps else None,
        "prelu": randn(out) if "p" in steps else None,
        "residual": randn(batch, out, *sides) if "r" in steps else None,
        "rprelu": randn(3, out) if "q" in steps else None,
        "sign_shift": randn(out) if "t" in steps else None,
        "sign_groups": 2 if "s" in steps else 0,
    }


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
    got = kernels.binary_conv2d(made.x, made.weight, made.geometry)
    assert torch.equal(got[0], call({**a, **dict.fromkeys(Epilogue._fields[:6]), "sign_groups": 0})[0]) or real


def call(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    y, bits = torch.ops.esbnn.binary_conv2d.default(*(arguments[name] for name in ORDER))
    return y, bits


STEPS = ["", "a", "ap", "ar", "aq", "aprq", "as", "ast", "arqst", "aprqst"]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [1, 4])
def test_the_epilogue_is_these_steps_in_this_order(steps: str, dtype: torch.dtype, copies: int) -> None:
    a = conv_arguments(steps, copies=copies, dtype=dtype, seed=len(steps))
    total = call({**conv_arguments("", copies=1, dtype=dtype, seed=len(steps))})[0]
    assert total.dtype == torch.int32
    y = torch.cat([total] * copies, 1)
    if "a" in steps:
        y = y.to(dtype) * a["scale"].view(-1, 1, 1)
        y = y + a["bias"].view(-1, 1, 1)
    if "p" in steps:
        y = torch.where(y >= 0, y, a["prelu"].view(-1, 1, 1) * y)
    if "r" in steps:
        y = y + a["residual"]
    if "q" in steps:
        y = y + a["rprelu"][0].view(-1, 1, 1)
        y = torch.where(y >= 0, y, a["rprelu"][1].view(-1, 1, 1) * y)
        y = y + a["rprelu"][2].view(-1, 1, 1)
    got, bits = call(a)
    assert got.dtype == y.dtype and torch.equal(got, y)
    if "s" not in steps:
        assert bits.shape == (0,) and bits.dtype == torch.int32
        return
    moved = y + a["sign_shift"].view(-1, 1, 1) if "t" in steps else y
    assert bits.is_contiguous() and torch.equal(bits, kernels.pack_sign(moved, None, 2, 1))
    out = 6 * copies
    half = reference.unpack_bits(bits.unflatten(-1, (2, -1)), out // 2).flatten(-2)
    assert torch.equal(half, (moved >= 0).permute(0, 2, 3, 1))


def test_bits_of_one_layer_feed_the_next() -> None:
    first = conv_arguments("aqst", copies=4, filters=10, channels=34)
    y, bits = call(first)
    second = conv_arguments("a", channels=40, groups=2)
    through_bits = call({**second, "x": bits})[0]
    through_floats = call({**second, "x": kernels.pack_sign(y, first["sign_shift"], 2, 1)})[0]
    assert torch.equal(through_bits, through_floats)
    assert not torch.equal(bits, kernels.pack_sign(y, None, 2, 1))


@pytest.mark.parametrize("size", [(3, 7, 5), (1, 3, 4), (2, 1, 1), (1, 1, 6)])
@pytest.mark.parametrize("steps", ["", "ar", "aprqst"])
def test_outputs_lie_in_channels_last(size: tuple[int, int, int], steps: str) -> None:
    y, bits = call(conv_arguments(steps, size=size))
    n, c, h, w = y.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    for side, stride, want in zip(y.shape, y.stride(), (h * w * c, 1, w * c, c), strict=True):
        assert stride == want or side == 1
    assert (n, h, w) == size
    if "s" in steps:
        assert bits.shape == (n, h, w, kernels.words_of(c, 2)) and bits.is_contiguous()


@pytest.mark.parametrize("chunk", [1, 7, 300, 10**9])
def test_the_walk_over_the_batch_does_not_show(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a = conv_arguments("aprqst", size=(5, 6, 6))
    want = call(a)
    monkeypatch.setattr(reference, "CHUNK", chunk)
    for got, wanted in zip(call(a), want, strict=True):
        assert torch.equal(got, wanted)


def test_an_empty_batch_gives_an_empty_output() -> None:
    a = conv_arguments("as")
    y, bits = call({**a, "x": a["x"][:0]})
    assert y.shape == (0, 12, 7, 5) and bits.shape == (0, 7, 5, 2)


def test_pack_sign_adds_the_shift_before_the_sign() -> None:
    x = torch.randn(2, 37, 3, 3, generator=gen(0))
    shift = -x[0, :, 1, 1]
    bits = reference.unpack_bits(kernels.pack_sign(x, shift, 1, 1), 37)
    assert torch.equal(bits, (x + shift.view(-1, 1, 1) >= 0).permute(0, 2, 3, 1))
    assert bits[0, 1, 1].all()  # x + shift = 0 is +1
    assert torch.equal(kernels.pack_sign(x.movedim(1, -1), shift, 1, -1), kernels.pack_sign(x, shift, 1, 1))
    assert torch.equal(
        kernels.pack_sign(x.to(memory_format=torch.channels_last), shift, 1, 1), kernels.pack_sign(x, shift, 1, 1)
    )


@pytest.mark.parametrize("steps", STEPS)
def test_opcheck_of_the_convolution(steps: str) -> None:
    for options in ({}, {"groups": 1, "copies": 1, "channels": 33, "filters": 4}, {"pad_value": -1, "stride": 2}):
        a = conv_arguments(steps, **options)  # type: ignore[arg-type]
        result = torch.library.opcheck(torch.ops.esbnn.binary_conv2d.default, tuple(a[name] for name in ORDER))
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("shape", "groups", "dim"), [((2, 34, 3, 2), 2, 1), ((3, 5, 40), 1, -1), ((64,), 2, -1)])
@pytest.mark.parametrize("shifted", [True, False])
def test_opcheck_of_the_packing(shape: tuple[int, ...], groups: int, dim: int, shifted: bool) -> None:
    x = torch.randn(shape, generator=gen(0))
    shift = torch.randn(x.shape[dim], generator=gen(1)) if shifted else None
    result = torch.library.opcheck(torch.ops.esbnn.pack_sign.default, (x, shift, groups, dim))
    assert set(result.values()) == {"SUCCESS"}


def linear_arguments(copies: int = 1, affine: bool = False) -> list[Any]:
    x = kernels.pack_sign(torch.randn(2, 3, 66, generator=gen(0)), None, 2, -1)
    weight = kernels.pack_sign(torch.randn(4, 33, generator=gen(1)), None, 1, -1)
    pair = [torch.randn(4 * copies, generator=gen(s)) if affine else None for s in (2, 3)]
    return [x, weight, 66, 2, copies, *pair]


@pytest.mark.parametrize(("copies", "affine"), [(1, False), (1, True), (3, False), (3, True)])
def test_opcheck_and_affine_of_the_product(copies: int, affine: bool) -> None:
    a = linear_arguments(copies, affine)
    result = torch.library.opcheck(torch.ops.esbnn.binary_linear.default, tuple(a))
    assert set(result.values()) == {"SUCCESS"}
    y = kernels.binary_linear(*a)
    total = kernels.binary_linear(*linear_arguments(copies))
    assert torch.equal(y, total * a[5] + a[6] if affine else total)


BAD_CONV: list[tuple[str, dict[str, Any]]] = [
    ("x", {"x": torch.zeros(3, 7, 5, 2)}),
    ("x", {"x": torch.zeros(3, 7, 5, 2, dtype=torch.int64)}),
    ("x", {"x": torch.zeros(7, 5, 2, dtype=torch.int32)}),
    ("x", {"x": torch.zeros(3, 7, 5, 3, dtype=torch.int32)}),
    ("x", {"padding": [0, 0], "x": torch.zeros(3, 2, 5, 2, dtype=torch.int32)}),
    ("weight", {"weight": torch.zeros(6, 3, 3, 1)}),
    ("weight", {"weight": torch.zeros(6, 3, 1, dtype=torch.int32)}),
    ("weight", {"weight": torch.zeros(6, 3, 3, 2, dtype=torch.int32)}),
    ("groups", {"groups": 3}),
    ("groups", {"groups": 4}),
    ("groups", {"groups": 0}),
    ("copies", {"copies": 0}),
    ("pad_value", {"pad_value": 1}),
    ("stride", {"stride": [0, 1]}),
    ("stride", {"stride": [1]}),
    ("padding", {"padding": [-1, 1]}),
    ("dilation", {"dilation": [1, 0]}),
    ("bias", {"bias": None}),
    ("scale", {"scale": None}),
    ("scale", {"scale": torch.ones(6)}),
    ("scale", {"scale": torch.ones(12, dtype=torch.int32)}),
    ("bias", {"bias": torch.ones(12, 1)}),
    ("prelu", {"prelu": torch.ones(6)}),
    ("prelu", {"prelu": torch.ones(12, dtype=torch.int32)}),
    ("residual", {"residual": torch.ones(3, 6, 7, 5)}),
    ("residual", {"residual": torch.ones(3, 12, 1, 1)}),
    ("rprelu", {"rprelu": torch.ones(2, 12)}),
    ("rprelu", {"rprelu": torch.ones(3, 1)}),
    ("sign_shift", {"sign_shift": torch.ones(6), "sign_groups": 2}),
    ("sign_groups", {"sign_groups": 5}),
    ("sign_groups", {"sign_groups": -1}),
    ("prelu", {"scale": None, "bias": None, "prelu": torch.ones(12)}),
    ("residual", {"scale": None, "bias": None, "residual": torch.ones(3, 12, 7, 5)}),
    ("rprelu", {"scale": None, "bias": None, "rprelu": torch.ones(3, 12)}),
    ("sign_groups", {"scale": None, "bias": None, "sign_groups": 1}),
]


def label(value: object) -> str:
    """Short test ids: a tensor by its dtype and shape."""
    if isinstance(value, dict):
        return "-".join(f"{name}-{label(part)}" for name, part in value.items())
    return f"{value.dtype}{list(value.shape)}".replace("torch.", "") if isinstance(value, Tensor) else str(value)


def refused(run: Callable[[], object], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        run()


@pytest.mark.parametrize(("name", "change"), BAD_CONV, ids=label)
def test_the_convolution_refuses_by_name(name: str, change: dict[str, Any]) -> None:
    good = conv_arguments("a")
    assert call(good)[0].shape == (3, 12, 7, 5)
    refused(lambda: call({**good, **change}), name)
    # tracing must refuse what running refuses
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        refused(lambda: call({**good, **change}), name)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("x", 0, torch.zeros(2, 4)),
        ("x", 0, torch.zeros(2, 5, dtype=torch.int32)),
        ("weight", 1, torch.zeros(4, 2)),
        ("weight", 1, torch.zeros(4, 3, dtype=torch.int32)),
        ("weight", 1, torch.zeros(4, 1, 2, dtype=torch.int32)),
        ("groups", 3, 5),
        ("copies", 4, 0),
        ("scale", 5, None),
        ("bias", 6, None),
        ("scale", 5, torch.ones(3)),
        ("bias", 6, torch.ones(4, dtype=torch.int32)),
    ],
    ids=label,
)
def test_the_product_refuses_by_name(name: str, place: int, value: object) -> None:
    a = linear_arguments(1, True)
    assert kernels.binary_linear(*a).shape == (2, 3, 4)
    a[place] = value
    refused(lambda: kernels.binary_linear(*a), name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"x": torch.zeros(2, 8, 3, 3, dtype=torch.int32)}),
        ("x", {"x": torch.zeros(2, 8, 3)}),
        ("channel_dim", {"channel_dim": 2}),
        ("groups", {"groups": 3}),
        ("groups", {"groups": 0}),
        ("shift", {"shift": torch.zeros(4)}),
        ("shift", {"shift": torch.zeros(8, 1, 1)}),
    ],
    ids=label,
)
def test_the_packing_refuses_by_name(name: str, change: dict[str, Any]) -> None:
    good = {"x": torch.zeros(2, 8, 3, 3), "shift": None, "groups": 1, "channel_dim": 1}
    assert kernels.pack_sign(*good.values()).shape == (2, 3, 3, 1)
    refused(lambda: kernels.pack_sign(*{**good, **change}.values()), name)
