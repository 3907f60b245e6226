"""A unit, its twin that trains on bits, and the comparison of their runs."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core import (
    TrainOnBits,
    bit_training_report,
    train_on_bits_,
)
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.units import build, randn, relative


def unit_of(options: dict[str, Any]) -> BinaryUnit:
    """As `build`, in training mode, a temperature annealed."""
    unit = build(options).train()
    if isinstance(unit.conv.quantizer, Temperature):
        unit.conv.quantizer.temperature.zero_()
    return unit


def on_bits(model: nn.Module, config: TrainOnBits | None = None) -> nn.Module:
    """A copy that trains on bits, all of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = train_on_bits_(copy.deepcopy(model), config)
    assert set(bit_training_report(twin).values()) == {""}
    return twin


def run(model: nn.Module, x: Tensor, *rest: Tensor) -> dict[str, Tensor]:
    """Output, all gradients and all buffers of one forward and backward."""
    x = x.detach().clone().requires_grad_()
    y = model(x, *rest)
    y.backward(randn(*y.shape, seed=8).to(y.dtype))
    found = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "gradient of x": x.grad, **found, **dict(model.named_buffers())}


def compare(got: dict[str, Tensor], want: dict[str, Tensor], bound: float) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.is_floating_point() and value.abs().max() > 0:
            assert relative(got[name].double(), value.double()) <= bound, name
        else:
            assert torch.equal(got[name], value.to(got[name].dtype)), name
