"""real_weights_: binary activations with real weights, step 1 of the two-step recipes."""

from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import RealWeights


def real_weights_(model: nn.Module, fresh: bool = False) -> nn.Module:
    """Make every binary layer convolve with its latent weight itself, in place: step 1 of the two-step recipes.

    Activations stay binary, and so do the names and shapes of all tensors: the binary network of step 2 loads the file
    of step 1 strictly (papers.md#two-steps). checkpoint and release keep the mode with the file.

    Args:
        model: a latent network. fresh: draw new latent weights as torch's own convolutions start, U(+-1/sqrt(fan-in)):
            step 1 of the originals is made of ordinary convolutions.

    Returns:
        the same model.

    Raises:
        InputError: no binary layer, or one whose quantizer has a state of its own (BNext's temperature, ReCU's tau)
            that real weights would leave out of the file (named); the model is then as it was.
    """
    layers = binary_layers(model)
    if not layers:
        raise InputError("real_weights_ met no binary layer: give a latent network, not a real or a packed one")
    for name, layer in layers:
        if state := ", ".join(layer.quantizer.state_dict()):
            raise InputError(
                f"layer {name} has the quantizer {type(layer.quantizer).__name__} with a state of its own ({state}), "
                f"one without was expected: train this network in one step, with binary weights"
            )
    for _, layer in layers:
        layer.quantizer = RealWeights()
        if fresh:
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
    return model
