"""Verbs that change a model in place and return it: binarize_ (real -> binary), real_weights_ (step 1 of the
two-step recipes) and pack_ (binary -> bits).

The fourth verb, expand_ (binary -> expand-shrink), has a room of its own: esbnn_core.expansion.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers import BinaryConv2d, BinaryLinear, RSign, Sign
from esbnn_core.packed_chain import chained
from esbnn_core.packed_kinds import drop_training_parts_, packed_like
from esbnn_core.quantizers import STE, RealWeights
from esbnn_core.unit import BinaryUnit, binary_layers


def replace_modules(
    model: nn.Module, replace: Callable[[str, nn.Module], nn.Module | None]
) -> Iterator[tuple[str, nn.Module]]:
    """Walk the children depth-first and swap each module for which `replace` gives another; yields what was swapped.

    The walk goes on inside what was swapped in. A module that is reached by two names is replaced by one and the same.
    """
    done: dict[nn.Module, nn.Module] = {}

    def walk(parent: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for key, child in list(parent._modules.items()):  # named_children() skips a module's second name
            if child is None:
                continue
            name = f"{prefix}{key}"
            new = done[child] if child in done else replace(name, child)
            if new is not None:
                done[child] = new
                setattr(parent, key, new)
                yield name, new
            yield from walk(child if new is None else new, f"{name}.")

    yield from walk(model, "")


FilterFn = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class BinaryConfig:
    """What binarize_ makes of a convolution or linear layer.

    Attributes:
        weight_quantizer, ste, clip, pad_value, learned_scale: as BinaryConv2d.
        shift: a learnable RSign shift in front of every binary layer.
        activation: what stands in for every nn.ReLU. A sign behind a ReLU is +1 everywhere, so "keep" is for networks
            without one; a ReLU that forward calls as a function is not seen and has to be made a module first.
            "prelu" has one slope for all channels, so that a shared module serves every width; or "hardtanh".
        filter_fn: (name, module) -> whether to binarize it; None takes all but the first convolution and the last
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
    """First convolution and last linear layer (in the order of definition): the real-valued ends of the network."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return {*convs[:1], *linears[-1:]}


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The tensor itself where it is a parameter, as it always is but under a parametrization."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


def _binary(name: str, module: nn.Module, config: BinaryConfig) -> nn.Module | None:
    """The binary layer with the same geometry whose latent weight (and bias) is the real layer's."""
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise InputError(
                f"layer {name} has padding {module.padding!r} in mode {module.padding_mode!r}, a number in mode "
                f"'zeros' was expected: leave it out with filter_fn"
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
    # the trained real parameters go on as the latent ones, so an optimizer that holds them keeps them
    new.register_parameter("weight", _parameter(module.weight))
    if module.bias is not None:
        new.register_parameter("bias", _parameter(module.bias))
    return new.train(module.training)


def binarize_(model: nn.Module, config: BinaryConfig | None = None) -> nn.Module:
    """Turn the convolutions and linear layers of a torchvision- or timm-style CNN into binary ones, in place.

    The real weights stay as latent weights. Attention modules keep their own code: give a filter_fn that leaves out
    what they multiply by hand.

    Args:
        model: any module. config: BinaryConfig(), all but the first convolution and the last linear layer.

    Returns:
        the same model.

    Raises:
        InputError: nothing matched, or a layer whose geometry a binary layer does not have (named); the model is then
            as it was.
    """
    config = config or BinaryConfig()
    ends = _ends(model)

    def wanted(name: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        return config.filter_fn(name, module) if config.filter_fn else module not in ends

    # all are built before the first is swapped: an error leaves the model whole
    built = {module: _binary(name, module, config) for name, module in model.named_modules() if wanted(name, module)}
    if not built:
        raise InputError("binarize_ met no convolution or linear layer to binarize: check filter_fn")

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.ReLU) and config.activation != "keep":
            return nn.Hardtanh() if config.activation == "hardtanh" else nn.PReLU()
        return built.get(module)

    for _ in replace_modules(model, replace):
        pass
    return model


def real_weights_(model: nn.Module, fresh: bool = False) -> nn.Module:
    """Make every binary layer convolve with its latent weight itself, in place: step 1 of the two-step recipes.

    Activations stay binary, and so do the names and shapes of all tensors: the binary network of step 2 loads the file
    of step 1 strictly (spec 3.5). checkpoint and release keep the mode with the file.

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


def pack_(model: nn.Module) -> nn.Module:
    """Swap every binary unit, convolution and linear layer for its packed module, in place; sets eval mode.

    Outside training the packed network computes the same numbers as the latent one, bit for bit on a CPU. Units that
    follow each other in an nn.Sequential hand packed signs on (esbnn_core.packed_chain). `.bfloat16()` of the packed
    network makes its real-valued layers, and what flows between the units, narrow; the sums stay exact.
    Modules with parts for training alone (a method drop_training_parts_, as latent_resnet18 has) lose them.

    Returns:
        the same model, its latent weights gone (a bare binary layer or unit comes back as its packed module).

    Raises:
        InputError: no binary layer, or one whose weights are not in sign mode or not finite (named); the model is then
            as it was.
    """
    filled: dict[nn.Module, nn.Module] = {}
    covered: set[nn.Module] = set()
    with torch.no_grad():
        for name, module in model.named_modules():
            if module in covered:
                continue
            packed = packed_like(module)
            if packed is not None:
                # a unit packs its own convolution; what its shortcut holds is packed apart
                covered.update(module.conv.modules() if isinstance(module, BinaryUnit) else module.modules())
                filled[module] = packed.fill_(module, name)  # type: ignore[operator]
    if not filled:
        raise InputError("pack_ met no binary layer: it packs networks of create_model, binarize_ or binary layers")
    drop_training_parts_(model)
    for _ in replace_modules(model, lambda _, module: filled.get(module)):
        pass
    return _chain(filled.get(model, model)).eval()


def _chain(model: nn.Module) -> nn.Module:
    """Let consecutive packed units hand their signs on; names and tensors stay as they are."""
    for _ in replace_modules(model, lambda _, module: chained(module)):
        pass
    return chained(model) or model


def pack_layout_(model: nn.Module) -> nn.Module:
    """As pack_, but with empty (zero) packed modules: the shape that a packed file is read into; returns as pack_."""
    whole = packed_like(model)
    if whole is not None:
        return whole.eval()
    drop_training_parts_(model)
    for _ in replace_modules(model, lambda _, module: packed_like(module)):
        pass
    return _chain(model).eval()
