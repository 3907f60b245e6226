"""A unit, its twin that trains on bits, the comparison of their runs, and drawn tails of units."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core import (
    TrainOnBits,
    bit_training_report,
    train_on_bits_,
)
from esbnn_core.kernels.norm import NormCall
from esbnn_core.layers.quantizers import Temperature
from esbnn_core.training.on_bits import function, signs, tail
from esbnn_core.training.on_bits import paths as training_paths
from esbnn_core.training.on_bits.tail import Tail
from esbnn_core.units.conv import BinaryUnit
from tests.helpers.units import build, randn, relative

UNITS: list[dict[str, Any]] = [
    {"tau": 2, "groups": 2, "inner_act": True},
    {"tau": 4, "act": "hardtanh", "ste": "clip", "clip": 1.2},
    {"groups": 2, "act": "prelu", "learned_scale": True, "weight_quantizer": "absmean_centred"},
]
"""Units with every step that a library has."""


def remove_torchs_steps(remove: Callable[[object, str], None], norm: bool = True) -> None:
    """Take away the steps in pieces of torch operators, so that what falls back to them fails.

    Args:
        remove: monkeypatch.delattr.
        norm: whether also those of a norm over the batch; without one there is nothing that a library could do for it.
    """
    for module, names in ((tail, ("finish", "unfinish", "add_statistics")), (signs, ("through", "signs", "unpack"))):
        for name in names:
            remove(module, f"{name}_in_torch")
    if norm:
        remove(training_paths, "batch_statistics")
        remove(function, "_through_tail")


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
    y.backward(randn(*y.shape, seed=8).to(y))
    found = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "gradient of x": x.grad, **found, **dict(model.named_buffers())}


def compare(got: dict[str, Tensor], want: dict[str, Tensor], bound: float) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value.is_floating_point() and value.abs().max() > 0:
            assert relative(got[name].double(), value.double()) <= bound, name
        else:
            assert torch.equal(got[name], value.to(got[name].dtype)), name


def draw(shape: tuple[int, int, int], act: str, inner: bool, centre: bool, sums: torch.dtype) -> tuple[Tail, Any]:
    """A tail in float32 and (sums, residual, gradient of y) of `shape`, rows, filters and copies."""
    rows, filters, copies = shape
    channels = copies * filters
    vectors = [randn(channels, seed=seed).float() for seed in range(6)]
    factor, offset, slopes, shift_in, slope, shift_out = vectors
    rprelu = act == "rprelu"
    made = Tail(
        *(copies, randn(filters, seed=9).float() if centre else None, 0.05 * factor, offset),
        *(slopes if inner else None, "prelu" if rprelu else act, shift_in if rprelu and inner else None),
        *(slope if "prelu" in act else None, shift_out if rprelu else None, (-0.7, 1.2)),
    )
    counted = (60 * randn(rows, filters, seed=7)).round().to(sums)
    return made, (counted, randn(rows, channels, seed=10).float(), randn(rows, channels, seed=11).float())


def in_double(made: Tail) -> Tail:
    return Tail(*(t.double() if isinstance(t, Tensor) else t for t in made))


def draw_norm(
    filters: int, copies: int, number: int
) -> tuple[NormCall, Tensor | None, Tensor | None, tuple[Tensor, Tensor] | None]:
    """A norm over 37 rows of drawn sums, its bias, a shift and its running statistics; `number` leaves some out."""
    sums = (60 * randn(37, filters, seed=number) + 5).round().long()
    scale, (gamma, beta, shift_in) = randn(filters, seed=1).abs().float(), randn(3, copies * filters, seed=2).float()
    running = (randn(copies * filters, seed=3).float(), randn(copies * filters, seed=4).abs().float())
    call = NormCall(
        torch.stack([sums.sum(0), (sums * sums).sum(0)]),
        *(37, copies, 1e-5, scale if number % 2 else None, gamma if number != 2 else None),
    )
    return call, beta if number != 1 else None, shift_in if number > 1 else None, running if number != 3 else None
