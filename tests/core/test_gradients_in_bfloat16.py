"""TrainOnBits(gradient_dtype=torch.bfloat16): what is exact in it, what is rounded and by how much, and who refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from esbnn_core import InputError, TrainOnBits, create_model, train_on_bits_
from esbnn_core.kernels.cpu import narrow
from esbnn_core.layers import BinaryConv2d, BinaryConvTranspose2d
from tests.helpers.bit_training import compare, on_bits, run, unit_of
from tests.helpers.units import randn, relative

ROUNDED = TrainOnBits(gradient_dtype=torch.bfloat16)
STEP = 2.0**-8
"""No rounding to bfloat16 moves a number by more than half of this part of it."""


@pytest.fixture(params=[True, False], ids=["native", "imitated"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is said to have instructions for bfloat16."""
    if request.param and narrow.is_native(torch.bfloat16) is False:
        pytest.skip("this processor has no bfloat16 instructions, and what torch does in their place rounds more often")
    monkeypatch.setattr(narrow, "is_native", lambda dtype: request.param)
    return bool(request.param)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [BinaryConv2d, BinaryConvTranspose2d])
def test_whole_gradients_come_through_exactly(kind: Any, stride: int) -> None:
    """+-1 and whole numbers up to 256 are exact in 8 bits, and so are their sums."""
    layer = kind(6, 8, 3, stride, 1, weight_quantizer="sign", activation="identity", groups=2).train()
    x = randn(2, 6, 5, 4).float()
    shape = layer(x).shape
    grad = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(stride)).float()
    found = []
    for twin in (copy.deepcopy(layer), on_bits(layer), on_bits(layer, ROUNDED)):
        own = x.clone().requires_grad_()
        twin(own).backward(grad)
        found.append((own.grad, twin.weight.grad))
    (x_grad, weight_grad), *others = found
    assert 2 < max(x_grad.abs().max(), weight_grad.abs().max()) <= 256
    for got in others:
        assert torch.equal(got[0], x_grad) and torch.equal(got[1], weight_grad)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("channels", [8, 40])  # by torch's convolution and by Winograd's products
@pytest.mark.parametrize("activation", ["identity", "poly2"])
def test_what_the_convolutions_return_is_rounded_once_more(activation: str, channels: int) -> None:
    layer = BinaryConv2d(channels, channels, 3, 1, 1, weight_quantizer="sign", activation=activation).train()
    x = randn(4, channels, 9, 8).float().requires_grad_()
    twin = on_bits(layer, ROUNDED)
    twin(x).backward(randn(4, channels, 9, 8, seed=3).float())
    # poly2's slope comes after the rounding
    for grad in (twin.weight.grad, *([x.grad] if activation == "identity" else [])):
        assert grad.abs().max() > 1 and torch.equal(grad, grad.bfloat16().float())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    "options", [{}, {"tau": 2, "groups": 2}, {"ste": "clip", "inner_act": True, "stride": 2}], ids=str
)
def test_a_unit_rounds_what_goes_through_its_convolution_alone(options: dict[str, Any]) -> None:
    unit = unit_of(options).float()
    x = randn(3, 8 * unit.tau * unit.groups, 7, 5, seed=7).float()
    want, got = run(on_bits(unit), x), run(on_bits(unit, ROUNDED), x)
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in want.items()}
    through = {"gradient of x", "gradient of conv.weight", "gradient of conv.sign.shift"} & got.keys()
    assert len(through) == 3
    # forward, statistics and the gradients of the tail are the same numbers
    compare({k: got[k] for k in got.keys() - through}, {k: want[k] for k in got.keys() - through}, 0.0)
    for name in through:
        assert 1e-5 < relative(got[name], want[name]) < STEP, name


def test_a_processor_that_imitates_it_convolves_in_float32_and_rounds(native: bool) -> None:
    layer = on_bits(BinaryConv2d(8, 8, 3, 1, 1, weight_quantizer="sign", activation="identity").train(), ROUNDED)
    x, seen = randn(2, 8, 5, 5).float().requires_grad_(), list[tuple[str, list[torch.dtype]]]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution_backward" in str(func):
                seen.append((str(func), [each.dtype for each in args[:3]]))
            return func(*args, **(kwargs or {}))

    y = layer(x)
    with Watch():
        y.backward(randn(*y.shape).float())
    ((_, dtypes),) = seen
    assert dtypes == [torch.bfloat16 if native else torch.float32] * 3
    for grad in (x.grad, layer.weight.grad):
        assert torch.equal(grad, grad.bfloat16().float())


def test_other_types_of_a_layer_are_left_as_they_are() -> None:
    unit = unit_of({"tau": 2})
    x = randn(2, 16, 5, 5, seed=3)
    compare(run(on_bits(unit, ROUNDED), x), run(on_bits(unit), x), 0.0)  # float64


def test_another_type_is_refused_before_anything_changes() -> None:
    network = create_model("reactnet_resnet8")
    with pytest.raises(InputError, match=r"gradient_dtype must be torch.bfloat16 or None, got torch.float16: another"):
        train_on_bits_(network, TrainOnBits(gradient_dtype=torch.float16))
    assert all(getattr(module, "training_path", None) is None for module in network.modules())


def test_a_processor_that_imitates_it_is_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(narrow, "is_native", lambda dtype: False)
    narrow.mention.cache_clear()
    units = nn.Sequential(*[unit_of({}).float() for _ in range(2)])
    on_bits(units, ROUNDED)(randn(2, 8, 5, 5).float())
    narrow.mention.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "esbnn: this processor has no bfloat16 instructions, so gradients rounded to bfloat16 are no faster "
        "here than in float32: leave gradient_dtype out (train_on_bits: true)"
    )
