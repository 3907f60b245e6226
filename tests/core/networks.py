"""Which registered networks the tests run whole, and how a BNext is brought into sign mode."""

from torch import nn

from esbnn_core import list_models
from esbnn_core.quantizers import Temperature

HEAVY = ("bnext_small", "bnext_middle", "bnext_large")
"""Up to 327 million parameters of the very modules that bnext_tiny has: built on the meta device and counted only."""

LIGHT = [name for name in list_models() if not name.endswith(HEAVY)]
PLAIN = [name for name in LIGHT if not name.startswith(("es_", "rep_"))]


def annealed(model: nn.Module) -> nn.Module:
    """The model with every temperature at 0, where its weights are signs."""
    for module in model.modules():
        if isinstance(module, Temperature):
            module.temperature.zero_()
    return model
