"""Training on bits: the verb train_on_bits_, the verb that undoes it, and a report.

The training forward of a binary unit takes its sums from the packed operators (esbnn_core.kernels), and the backward
keeps bits in place of real maps. Gradients, running statistics and the names of all tensors are those of the plain
layers; evaluation and packing do not change. Sums over channels need float64, which Apple's mps does not have. A
gradient of a gradient is refused.
"""

import warnings

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.base import BinaryLayer, binary_layers
from esbnn_core.layers.quantizers import RealWeights
from esbnn_core.training.on_bits.paths import LayerPath, TrainOnBits, UnitPath
from esbnn_core.units.conv import BinaryUnit

__all__ = ["TrainOnBits", "bit_training_report", "train_on_bits_", "train_plain_"]

NOT_CALLED = "train_on_bits_ was not called"


def train_on_bits_(model: nn.Module, config: TrainOnBits | None = None) -> nn.Module:
    """Let every BinaryUnit and every binary layer of the model train on bits, in place.

    A unit trains on bits while it is in training mode, its weights are +-1 and each of its steps is supported; a BNext
    begins once its temperature is annealed. Until then the plain layers serve, and a warning names the first such unit.
    Only the product of bare layers, and of the linear layers of a TokenUnit, runs on bits. A unit's output is
    channels_last. Call the verb again after one that replaces layers (binarize_, expand_).

    Args:
        model: a latent network, wrapped for several processes or not.
        config: default TrainOnBits().

    Returns:
        the same model.

    Raises:
        InputError: no binary layer, or one with real weights (named), or another gradient_dtype than bfloat16; the
            model is then unchanged.
    """
    config = config or TrainOnBits()
    if config.gradient_dtype not in (None, torch.bfloat16):
        raise InputError(
            f"gradient_dtype must be torch.bfloat16 or None, got {config.gradient_dtype}: another type is not faster, "
            f"or loses small gradients"
        )
    layers = binary_layers(model)
    if not layers:
        raise InputError("train_on_bits_ found no binary layer: give a latent network, not a real or a packed one")
    for name, layer in layers:
        if isinstance(layer.quantizer, RealWeights):
            raise InputError(
                f"layer {name} must have binary weights to train on bits, got real ones: train step 1 of a two-step "
                f"recipe on the plain layers and step 2 on bits"
            )
    for module in model.modules():
        if isinstance(module, BinaryUnit):
            module.training_path = UnitPath(config)
        elif isinstance(module, BinaryLayer):
            module.training_path = LayerPath(config)
    plain = {name: reason for name, reason in bit_training_report(model).items() if reason}
    if plain:
        name, reason = next(iter(plain.items()))
        warnings.warn(
            f"{len(plain)} binary units or layers train on plain layers for now, the first is {name}: {reason} "
            f"(esbnn_core.training.on_bits.bit_training_report lists all)",
            stacklevel=2,
        )
    return model


def train_plain_(model: nn.Module) -> nn.Module:
    """Undo train_on_bits_, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, BinaryUnit | BinaryLayer):
            module.training_path = None
    return model


def bit_training_report(model: nn.Module) -> dict[str, str]:
    """Every BinaryUnit, and every binary layer outside one, by name: "" where it trains on bits, else why not.

    The reason of a unit of which only the convolution runs on bits begins with that.
    """
    report: dict[str, str] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, BinaryUnit | BinaryLayer):
            continue
        report[name] = _reason(module)
        if isinstance(module, BinaryUnit):
            inside.add(module.conv)
            if report[name] and not _reason(module.conv):
                report[name] = f"only its convolution runs on bits, {report[name]}"
    return report


def _reason(module: BinaryUnit | BinaryLayer) -> str:
    path = module.training_path
    if isinstance(module, BinaryUnit):
        return path.reason(module) if isinstance(path, UnitPath) else NOT_CALLED
    return path.reason(module) if isinstance(path, LayerPath) else NOT_CALLED
