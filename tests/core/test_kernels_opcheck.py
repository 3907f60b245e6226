"""Packed operators in torch's operator library: opcheck of the reference and of what serves on this machine."""

import pytest
import torch

from tests.helpers import paths
from tests.helpers.operators import ORDER, STEPS, conv_arguments, gen, linear_arguments


@pytest.fixture(params=["naive", "serving"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "naive":
        paths.force("naive", monkeypatch)


CONVOLUTIONS = [*(("serving", steps) for steps in STEPS), ("naive", ""), ("naive", "aprqst")]


GEOMETRIES = ({}, {"groups": 1, "copies": 1, "channels": 33, "filters": 4}, {"pad_value": -1, "stride": 2})


@pytest.mark.parametrize(
    ("path", "steps", "geometry"),
    [(*case, number % 3) for number, case in enumerate(CONVOLUTIONS)],
    indirect=["path"],
)
def test_opcheck_of_the_convolution(steps: str, geometry: int) -> None:
    a = conv_arguments(steps, **GEOMETRIES[geometry])  # type: ignore[arg-type]
    result = torch.library.opcheck(torch.ops.esbnn.binary_conv2d.default, tuple(a[name] for name in ORDER))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("shape", "groups", "dim"), [((2, 34, 3, 2), 2, 1), ((3, 5, 40), 1, -1), ((64,), 2, -1)])
@pytest.mark.parametrize("shifted", [True, False])
def test_opcheck_of_the_packing(shape: tuple[int, ...], groups: int, dim: int, shifted: bool) -> None:
    x = torch.randn(shape, generator=gen(0))
    shift = torch.randn(x.shape[dim], generator=gen(1)) if shifted else None
    result = torch.library.opcheck(torch.ops.esbnn.pack_sign.default, (x, shift, groups, dim))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("copies", "affine"), [(1, False), (1, True), (3, False), (3, True)])
def test_opcheck_of_the_product(copies: int, affine: bool) -> None:
    result = torch.library.opcheck(torch.ops.esbnn.binary_linear.default, tuple(linear_arguments(copies, affine)))
    assert set(result.values()) == {"SUCCESS"}
