"""Whether a network still is what its name and options build: a file may name it only then."""

import torch
from torch import nn

from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import RealWeights
from esbnn_core.models import create_model
from esbnn_core.models.change import find_change
from esbnn_core.models.registry import ModelSpec, model_spec
from esbnn_core.packed.layers import is_packed
from esbnn_core.transforms.pack import pack_layout_
from esbnn_core.transforms.real_weights import real_weights_


def has_real_weights(model: nn.Module) -> bool:
    """Whether real_weights_ made its binary layers convolve with their latent weights."""
    return any(isinstance(layer.quantizer, RealWeights) for _, layer in binary_layers(model))


def spec_as_built(model: nn.Module) -> tuple[ModelSpec | None, str]:
    """How create_model builds this very network, latent or packed, but for the numbers in its tensors.

    A network that was changed since, a layer replaced or a setting, would be built as it was by its name, and compute
    something else with the same tensors.

    Returns:
        its ModelSpec and "", or None and what was changed; None and "" for one that create_model did not build.
    """
    spec = model_spec(model)
    if spec is None:
        return None, ""
    with torch.device("meta"):  # no memory, no numbers drawn
        built = create_model(spec.name, **spec.options)
        if has_real_weights(model):
            real_weights_(built)
        if is_packed(model):
            built = pack_layout_(built)
    change = find_change(model, built)
    return (None, change) if change else (spec, "")
