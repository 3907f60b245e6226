"""binarize_: turn real-valued layers into binary ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryConv2d, BinaryLinear, RSign, Sign
from esbnn_core.layers.quantizers import STE
from esbnn_core.transforms.replace import replace_modules

FilterFn = Callable[[str, nn.Module], bool]


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
        activation: what replaces every nn.ReLU. After a ReLU every sign is +1, so "keep" is for networks without one.
            A ReLU that forward calls as a function is not found: make it a module first. "prelu" has one slope for all
            channels, so that a shared module fits every width. The third choice is "hardtanh".
        filter_fn: (name, module) -> whether to binarize it; None binarizes all but the first convolution and the last
            linear layer.
    """

    weight_quantizer: str = "absmean"
    ste: STE = "poly2"
    clip: float = 1.0
    pad_value: int = 0
    learned_scale: bool = False
    shift: bool = True
    activation: Literal["prelu", "hardtanh", "keep"] = "prelu"
    filter_fn: FilterFn | None = None


def _ends(model: nn.Module) -> set[nn.Module]:
    """First convolution and last linear layer in the order of definition, the real-valued ends of the network."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return {*convs[:1], *linears[-1:]}


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The tensor itself if it is a parameter, else a copy as one; under a parametrization it is none."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


def _make_binary(name: str, module: nn.Module, config: BinaryConfig) -> nn.Module | None:
    """The binary layer of the same geometry, with the real layer's weight and bias as latent ones."""
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise InputError(
                f"padding of layer {name} must be a number in mode 'zeros', got {module.padding!r} in mode "
                f"{module.padding_mode!r}: leave the layer out with filter_fn"
            )
        channels, channel_dim = module.in_channels, 1
    elif isinstance(module, nn.Linear):
        channels, channel_dim = module.in_features, -1
    else:
        return None
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
    """Turn the convolutions and linear layers of a torchvision- or timm-style CNN into binary ones, in place.

    The real weights become the latent weights. Attention modules keep their own code: give a filter_fn that leaves out
    the layers whose weights they multiply themselves.

    Args:
        model: any module.
        config: default BinaryConfig(): all but the first convolution and the last linear layer.

    Returns:
        The same model.

    Raises:
        InputError: no layer to binarize; a layer whose geometry a binary layer does not have (named). The model is then
            unchanged.
    """
    config = config or BinaryConfig()
    ends = _ends(model)

    def wanted(name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        return config.filter_fn(name, module) if config.filter_fn else module not in ends

    # all layers are built before the first is swapped: an error leaves the model unchanged
    built = {
        module: _make_binary(name, module, config) for name, module in model.named_modules() if wanted(name, module)
    }
    if not built:
        raise InputError("binarize_ found no convolution or linear layer to binarize: check filter_fn")

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.ReLU) and config.activation != "keep":
            return nn.Hardtanh() if config.activation == "hardtanh" else nn.PReLU()
        return built.get(module)

    for _ in replace_modules(model, replace):
        pass
    return model
