"""Winograd's gradients of a 3x3 convolution: each path of this machine against float64 autograd, and who uses them."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from esbnn_core.kernels.cpu import winograd
from esbnn_core.layers import BinaryConv2d
from tests.helpers import paths
from tests.helpers.bit_training import on_bits
from tests.helpers.units import randn, relative

# images, channels, filters, height, width of the input, stride, padding, what is outside, groups
CASES = [
    (3, 32, 48, 8, 8, 1, (1, 1), 0.0, 1),
    (4, 48, 32, 7, 9, 1, (1, 1), -1.0, 1),  # an odd map
    (2, 96, 64, 9, 11, 1, (1, 1), -1.0, 2),
    (2, 32, 32, 10, 12, 1, (0, 0), 0.0, 1),
    (2, 96, 16, 9, 7, 1, (2, 0), 0.5, 1),
    (40, 32, 32, 2, 2, 1, (1, 1), 0.0, 1),
    (3, 64, 80, 16, 16, 2, (1, 1), 0.0, 1),
    (4, 80, 48, 15, 20, 2, (1, 1), -1.0, 1),
    (2, 160, 96, 16, 20, 2, (1, 1), -1.0, 2),
    (3, 64, 64, 18, 18, 2, (0, 0), 0.0, 1),  # the last row and column are not read
    (3, 80, 64, 17, 16, 2, (0, 2), 0.5, 1),
]


@pytest.fixture(autouse=True)
def library() -> Iterator[None]:
    """The native library, and NaN in all memory that nothing has written to."""
    if not paths.usable()[1:]:
        pytest.skip("no native library here")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(case: tuple[Any, ...], whole: bool) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The gradient of the sums, signs, weight, and in float64 the gradients of these two."""
    images, channels, filters, height, width, stride, (rows, columns), outside, groups = case
    signs = randn(images, channels, height, width, seed=1).sign().float()
    weight = randn(filters, channels // groups, 3, 3, seed=2).sign().float()
    x = F.pad(signs.double(), (columns, columns, rows, rows), value=outside).requires_grad_()
    twin = weight.double().requires_grad_()
    y = F.conv2d(x, twin, stride=stride, groups=groups)
    grad = randn(*y.shape, seed=3).mul(4 if whole else 1)
    grad = grad.round().float() if whole else grad.float()
    x_grad, weight_grad = torch.autograd.grad(y, (x, twin), grad.double())
    return grad, signs, weight, [x_grad[:, :, rows : rows + height, columns : columns + width], weight_grad]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("step_bytes", [winograd.STEP_BYTES, 1], ids=["at once", "row by row"])
def test_gradients_are_those_of_autograd(case: tuple[Any, ...], step_bytes: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(winograd, "STEP_BYTES", step_bytes)
    for whole in (True, False):
        grad, signs, weight, want = draw(case, whole)
        for path in paths.usable()[1:]:
            with paths.forced(path):
                got = winograd.gradients(grad, signs, weight, *case[5:], (True, True))
            assert got is not None
            for value, wanted in zip(got[:2], want, strict=True):
                assert value is not None and value.dtype == torch.float32
                # whole numbers stay whole numbers, or quarters, all the way
                assert torch.equal(value.double(), wanted) if whole else relative(value.double(), wanted) < 1e-6, path


DERIVATIVES = {
    "identity": torch.ones_like,
    "clip": lambda a: (a.abs() <= 0.75).double(),
    "poly2": lambda a: (2 - 2 * a.abs()).clamp(min=0),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rule", DERIVATIVES)
@pytest.mark.parametrize("step_bytes", [winograd.STEP_BYTES, 1], ids=["at once", "row by row"])
def test_before_the_sign_gradients_go_through_its_estimator(
    case: tuple[Any, ...], rule: str, step_bytes: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(winograd, "STEP_BYTES", step_bytes)
    grad, signs, weight, want = draw(case, whole=True)
    images, channels, _, height, width = case[:5]
    # eighths: many sums of input and shift are 0, whose sign is +1, or at the end of the clip; all results are exact
    shift = randn(channels, seed=5).mul(8).round().div(8)
    a = signs.double() * randn(*signs.shape, seed=6).abs().mul(8).floor().div(8) - (signs < 0) / 8
    assert (a == 0).any() and (a.abs() == 0.75).any()
    x = (a - shift.view(-1, 1, 1)).float()
    added = randn(images * height * width, channels, seed=7).round().float()
    expected = want[0] * DERIVATIVES[rule](a)
    for path in paths.usable()[1:]:
        for onto in (None, added.clone()):
            before = winograd.BeforeSign(shift.float(), rule, 0.75, onto)
            with paths.forced(path):
                got = winograd.gradients(grad, x, weight, *case[5:], (True, True), before)
            assert got is not None and got.x is not None and got.weight is not None and got.shift is not None
            more = 0 if onto is None else added.view(images, height, width, channels).permute(0, 3, 1, 2)
            assert torch.equal(got.x.double(), expected + more) and torch.equal(got.weight.double(), want[1]), path
            assert torch.equal(got.shift, expected.sum((0, 2, 3))), path
            assert onto is None or onto.data_ptr() == got.x.data_ptr()


def test_a_sign_without_a_shift_has_its_thresholds_at_0() -> None:
    grad, _, weight, _ = draw(CASES[1], whole=False)
    x, found = randn(4, 48, 7, 9, seed=8).float(), []
    for shift in (None, torch.zeros(48)):
        before = winograd.BeforeSign(shift, "poly2", 1.0, None)
        found.append(winograd.gradients(grad, x, weight, *CASES[1][5:], (True, True), before))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    grad, _, weight, _ = draw(CASES[2], whole=False)
    x, shift = randn(2, 96, 9, 11, seed=8).float(), randn(96, seed=9).float()
    before = winograd.BeforeSign(shift, "poly2", 1.0, None)
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            found.append(winograd.gradients(grad, x, weight, *CASES[2][5:], (True, False), before))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other.x, found[0].x) and torch.equal(other.shift, found[0].shift)


def test_one_gradient_alone_is_the_same_and_nothing_is_written_over() -> None:
    grad, signs, weight, _ = draw(CASES[1], whole=False)
    given = [t.clone() for t in (grad, signs, weight)]
    both = winograd.gradients(grad, signs, weight, *CASES[1][5:], (True, True))
    assert both is not None
    for i, wanted in enumerate([(True, False), (False, True)]):
        alone = winograd.gradients(grad, signs, weight, *CASES[1][5:], wanted)
        assert alone is not None and alone[1 - i] is None and torch.equal(alone[i], both[i])
    assert all(torch.equal(a, b) for a, b in zip(given, (grad, signs, weight), strict=True))


def test_torch_computes_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def serves(
        channels: int = 32, filters: int = 32, size: int = 8, kernel: int = 3, dtype: torch.dtype = torch.float32
    ) -> bool:
        signs, weight = torch.ones(2, channels, size, size, dtype=dtype), torch.ones(filters, channels, kernel, kernel)
        grad = torch.ones(2, filters, size, size, dtype=dtype)
        found = winograd.gradients(grad, signs, weight.to(dtype), 1, (kernel // 2,) * 2, 0.0, 1, (True, True))
        return found is not None

    assert serves() and serves(channels=64, filters=16) and not serves(channels=48, filters=16)
    # whole vectors alone
    assert not any(serves(channels=80 + odd) or serves(filters=80 + odd) for odd in (1, 4, 8))
    assert not serves(size=3) and not serves(kernel=5)
    assert not serves(dtype=torch.float64) and not serves(dtype=torch.bfloat16)
    with paths.forced("naive"):
        assert not serves()
    monkeypatch.setattr(winograd, "MOST_BYTES", 64 * 4 * 64 - 1)  # a byte less than a row's tiles take
    assert not serves()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad_value", [0, -1])
def test_a_layer_on_bits_trains_by_it(stride: int, pad_value: int) -> None:
    options: dict[str, Any] = {"weight_quantizer": "sign", "activation": "identity", "pad_value": pad_value}
    layer = BinaryConv2d(64, 80, 3, stride, 1, **options).train()
    convolved: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            convolved.extend([str(func)] if "convolution_backward" in str(func) else [])
            return func(*args, **(kwargs or {}))

    x = randn(3, 64, 16, 15).float()
    exact, twin = copy.deepcopy(layer).double(), on_bits(layer)
    grad = randn(*layer(x).shape, seed=4).float()
    found = []
    for network, own in ((exact, x.double().requires_grad_()), (twin, x.clone().requires_grad_())):
        convolved.clear()
        y = network(own)
        with Watch():
            y.backward(grad.to(y.dtype))
        found.append((own.grad, network.weight.grad))
    assert len(convolved) == (stride == 3)
    for got, want in zip(found[1], found[0], strict=True):
        assert relative(got.double(), want) < 1e-6
