"""Which registered networks the tests run whole, and how a BNext is brought into sign mode."""

from torch import nn

from esbnn_core import list_models
from esbnn_core.layers.quantizers import Temperature

HEAVY = ("bnext_small", "bnext_middle", "bnext_large")
"""Up to 327 million parameters of the very modules that bnext_tiny has: built on the meta device and counted only."""

VIT = [name for name in list_models() if "binaryvit" in name]
"""Networks with a fixed image size; tests/core/test_binaryvit.py has them."""

LIGHT = [name for name in list_models(kind="classifier") if not name.endswith(HEAVY) and name not in VIT]
PLAIN = [name for name in LIGHT if not name.startswith(("es_", "rep_"))]
WITHOUT_REP = ("latent_resnet18", "latent_resnet34", "bidet_resnet18_classifier", "bidet_vgg16_classifier")
"""Plain networks that have an es_ version only."""


def annealed(model: nn.Module) -> nn.Module:
    """The model with every temperature at 0, where its weights are signs."""
    for module in model.modules():
        if isinstance(module, Temperature):
            module.temperature.zero_()
    return model
