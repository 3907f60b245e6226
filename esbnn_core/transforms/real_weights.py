"""real_weights_: make weights real and keep activations binary, step 1 of the two-step recipes."""

from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import RealWeights


def real_weights_(model: nn.Module, fresh: bool = False) -> nn.Module:
    """Make every binary layer convolve with its latent weight itself, in place: step 1 of the two-step recipes.

    Activations stay binary. All tensors keep their names and shapes, so the binary network of step 2 loads the file of
    step 1 strictly (papers.md#two-steps). A checkpoint records the mode.

    Args:
        model: a latent network.
        fresh: draw new latent weights from U(+-1/sqrt(fan-in)), the start of torch's convolutions: step 1 of the
            originals has ordinary convolutions.

    Returns:
        The same model.

    Raises:
        InputError: no binary layer; a layer whose quantizer has a state (BNext's temperature, ReCU's tau), which the
            file of a network with real weights would lack (named). The model is then unchanged.
    """
    layers = binary_layers(model)
    if not layers:
        raise InputError("real_weights_ found no binary layer: give a latent network, not a real or a packed one")
    for name, layer in layers:
        if state := ", ".join(layer.quantizer.state_dict()):
            raise InputError(
                f"quantizer of layer {name} must have no state to train with real weights, got "
                f"{type(layer.quantizer).__name__} with {state}: train this network in one step, with binary weights"
            )
    for _, layer in layers:
        layer.quantizer = RealWeights()
        if fresh:
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
    return model
