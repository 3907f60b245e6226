"""Which packed module stands for which latent one."""

from torch import nn

from esbnn_core.layers import BinaryConv2d, BinaryLinear
from esbnn_core.packed.layers import PackedConv2d, PackedLayer, PackedLinear
from esbnn_core.packed.timestep import PackedTimestepUnit
from esbnn_core.packed.units import PackedTokenUnit, PackedUnit
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.timestep import TimestepUnit
from esbnn_core.units.token import TokenUnit


def packed_like(module: nn.Module) -> PackedLayer | None:
    """The empty packed module for a latent unit or layer, None for anything else."""
    if isinstance(module, TokenUnit):
        return PackedTokenUnit(module)
    if isinstance(module, BinaryUnit):
        return PackedUnit(module)
    if isinstance(module, TimestepUnit):
        return PackedTimestepUnit(module)
    if isinstance(module, BinaryConv2d):
        return PackedConv2d(module)
    if isinstance(module, BinaryLinear):
        return PackedLinear(module)
    return None


def drop_training_parts_(model: nn.Module) -> nn.Module:
    """Let every module that has parts for training alone (a method drop_training_parts_) remove them; returns model."""
    for module in list(model.modules()):
        drop = getattr(module, "drop_training_parts_", None)
        if drop is not None:
            drop()
    return model
