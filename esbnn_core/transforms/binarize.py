"""binarize_: turn real-valued layers into binary ones."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import BinaryConv2d, BinaryLinear, RSign, Sign
from esbnn_core.layers.base import binary_layers
from esbnn_core.layers.quantizers import STE
from esbnn_core.transforms.binarize_checks import (
    check_forms,
    keep_slow_path_,
    warn_of,
    warn_of_calls,
    weights_read_elsewhere,
)
from esbnn_core.transforms.first_batch import FirstBatch
from esbnn_core.transforms.look import Look, look_at
from esbnn_core.transforms.replace import check_no_hooks, replace_modules

FilterFn = Callable[[str, nn.Module], bool]


Activation = Literal["prelu", "hardtanh", "keep"]


@dataclass(frozen=True)
class BinaryConfig:
    """What binarize_ makes of a convolution or linear layer.

    Attributes:
        weight_quantizer: as BinaryConv2d.
        ste: estimator of the sign of the activations, as `activation` of BinaryConv2d.
        clip: half width of the "clip" estimator.
        pad_value: as BinaryConv2d.
        learned_scale: as BinaryConv2d.
        shift: a learnable RSign shift in front of every binary layer.
        activation: replaces every nn.ReLU and nn.ReLU6, whose sign would be +1 everywhere. "prelu" has one slope for
            all channels, so that a shared module serves every width; "hardtanh"; "keep" leaves them.
        filter_fn: (name, module) -> whether to binarize it; None takes every nn.Conv2d and nn.Linear but those that
            read an input of the network or make one of its outputs, and those whose weight another module reads.
    """

    weight_quantizer: str = "absmean"
    ste: STE = "poly2"
    clip: float = 1.0
    pad_value: int = 0
    learned_scale: bool = False
    shift: bool = True
    activation: Activation = "prelu"
    filter_fn: FilterFn | None = None


def _ends(model: nn.Module, look: Look | None) -> set[nn.Module]:
    """The real-valued ends of the network; by the order of definition where the forward cannot be traced."""
    if look is not None:
        modules = dict(model.named_modules())
        return {modules[name] for name in look.ends}
    convs = [m for m in model.modules() if isinstance(m, _ConvNd)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return {*convs[:1], *(linears[-1:] or convs[-1:])} if convs else {*linears[:1], *linears[-1:]}


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The tensor itself if it is a parameter, else a copy as one; under a parametrization it is none."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


def _binary(name: str, module: nn.Module, config: BinaryConfig) -> nn.Module:
    """The binary layer with the same geometry whose latent weight (and bias) is the real layer's."""
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise InputError(
                f"padding of layer {name} must be a number in mode 'zeros', got {module.padding!r} in mode "
                f"{module.padding_mode!r}: leave the layer out with filter_fn"
            )
        channels, channel_dim = module.in_channels, 1
    else:
        assert isinstance(module, nn.Linear)
        channels, channel_dim = module.in_features, -1
    shape = {"channel_dim": channel_dim}
    sign = RSign(channels, config.ste, config.clip, **shape) if config.shift else Sign(config.ste, config.clip, **shape)
    new: BinaryConv2d | BinaryLinear
    if isinstance(module, nn.Conv2d):
        new = BinaryConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            pad_value=config.pad_value,
            dilation=module.dilation,  # type: ignore[arg-type]
            groups=module.groups,
            bias=module.bias is not None,
            weight_quantizer=config.weight_quantizer,
            activation=sign,
            learned_scale=config.learned_scale,
        )
    else:
        new = BinaryLinear(
            module.in_features,
            module.out_features,
            module.bias is not None,
            weight_quantizer=config.weight_quantizer,
            activation=sign,
            learned_scale=config.learned_scale,
        )
    new.to(device=module.weight.device, dtype=module.weight.dtype)
    # the same parameters, so that an optimizer that holds them goes on training them
    new.register_parameter("weight", _parameter(module.weight))
    if module.bias is not None:
        new.register_parameter("bias", _parameter(module.bias))
    return new.train(module.training)


def binarize_(model: nn.Module, config: BinaryConfig | None = None) -> nn.Module:
    """Turn the convolutions and linear layers of a network into binary ones, in place.

    The real weights stay as latent weights. What stays real although its kind could be binary or its place suggests it
    (other kinds of convolutions, the weights that an attention module multiplies by itself) is named in one warning;
    binary layers whose input cannot be negative, so that all signs are +1, are named in another, from the traced
    forward where torch.fx can follow it and else from the first batch (esbnn_core.transforms.first_batch).

    Args:
        model: any module.
        config: BinaryConfig() where None.

    Returns:
        The same model.

    Raises:
        InputError: nothing matched; a layer that a binary one cannot stand for (another padding mode, a subclass with a
            forward of its own, weight_norm, spectral_norm or pruning, a hook, a lazy one), or one of filter_fn whose
            weight another module reads; all by name. The model is then as it was.
    """
    config = config or BinaryConfig()
    check_choice("BinaryConfig.activation", config.activation, get_args(Activation))
    look = look_at(model)
    ends = _ends(model, look) if config.filter_fn is None else set()
    shared = weights_read_elsewhere(model, look)
    chosen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if isinstance(module, LazyModuleMixin):
            if config.filter_fn is None or config.filter_fn(name, module):
                raise InputError(
                    f"layer {name} is a {type(module).__name__}, which has no shape yet: run the network once before "
                    f"binarize_"
                )
            continue
        if config.filter_fn is not None and config.filter_fn(name, module):
            if name in shared:
                raise InputError(f"layer {name} cannot be binary, {shared[name]}: leave it out with filter_fn")
            chosen[name] = module
        elif config.filter_fn is None and module not in ends and name not in shared:
            chosen[name] = module
    # all are built before the first is swapped: an error leaves the model whole
    check_forms(chosen)
    built = {module: _binary(name, module, config) for name, module in chosen.items()}
    left = Counter(type(m).__name__ for m in model.modules() if isinstance(m, _ConvNd) and not isinstance(m, nn.Conv2d))
    if not built:
        kinds = f": it has {', '.join(f'{n} {kind}' for kind, n in left.items())}, which stay real" if left else ""
        raise InputError(f"binarize_ found no nn.Conv2d or nn.Linear to binarize{kinds}: check filter_fn")

    def replaced(module: nn.Module) -> bool:
        return isinstance(module, nn.ReLU | nn.ReLU6) and config.activation != "keep"

    check_no_hooks("binarize_", ((n, m) for n, m in model.named_modules() if m in built or replaced(m)))
    sources = look.positive(replaced) if look is not None else {}
    positive = {name: sources[name] for name in chosen if name in sources}

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if replaced(module):
            return nn.Hardtanh() if config.activation == "hardtanh" else nn.PReLU()
        return built.get(module)

    for _ in replace_modules(model, replace):
        pass
    model = built.get(model) or model
    keep_slow_path_(model)
    warn_of(left, shared if config.filter_fn is None else {}, positive)
    warn_of_calls(look)
    FirstBatch(model, [pair for pair in binary_layers(model) if pair[0] not in positive])
    return model
