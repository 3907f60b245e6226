"""Units whose every parameter matters, and how far two tensors are apart."""

from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.units import BinaryUnit
from tests.helpers.options import unit_options

OPTIONS: list[dict[str, Any]] = [
    {},
    {"tau": 2},
    {"tau": 2, "groups": 2, "inner_act": True},
    {"tau": 4, "inner_act": True, "act": "prelu", "stride": 2},
    {"groups": 2, "act": "hardtanh", "shift": False, "kernel_size": 1},
    {"tau": 2, "learned_scale": True, "pad_value": -1, "act": "none"},
    {"tau": 2, "norm": False, "weight_quantizer": "sign", "learned_scale": True, "act": "none"},
    {"weight_quantizer": "temperature", "ste": "clip", "clip": 1.5, "dilation": 2, "padding": 2},
    # in front of a norm the bias of a layer has no gradient to compare
    {"tau": 2, "bias": True, "norm": False, "pad_value": -1, "act": "none"},
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(options: dict[str, Any], shortcut: bool = True) -> BinaryUnit:
    """A float64 unit 8 -> 8 whose every parameter and statistic matters."""
    torch.manual_seed(0)
    shortcut = shortcut and options.get("stride", 1) == 1
    residual = nn.Identity() if shortcut else None
    unit = BinaryUnit(8, 8, **unit_options(shortcut=residual, latent_init="kaiming", **options)).double()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(unit.named_parameters()):
            if not name.endswith("conv.weight"):
                parameter.copy_(0.4 * randn(*parameter.shape, seed=seed) + 0.2)
    if isinstance(unit.norm, nn.BatchNorm2d):
        unit.norm.eps = 0.3  # at the default the gradient of a scale in front of it cancels to almost nothing
        unit.norm.running_mean = randn(unit.norm.num_features, seed=50)
        unit.norm.running_var = 0.5 + randn(unit.norm.num_features, seed=51) ** 2
    return unit


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape and want.abs().max() > 0
    return ((got - want).abs().max() / want.abs().max()).item()
