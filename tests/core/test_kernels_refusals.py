"""Packed operators: what they refuse, by the argument's name, when they run and when they are traced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from esbnn_core import kernels
from esbnn_core.kernels import cpu, cuda, reference
from tests.helpers.operators import call, conv_arguments, linear_arguments

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
    """By that name, and before any implementation is asked: so it is the same for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (cpu, cuda, reference):
            for function in {"binary_conv2d", "pack_sign", "conv2d_sum", "linear_sum"} & set(vars(module)):
                patch.setattr(module, function, lambda *_, **__: pytest.fail("it was run"))
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
