"""BinaryConfig, and the binary form of each module that binarize_ replaces; nothing here touches the network itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import BinaryConv2d, BinaryConvTranspose2d, BinaryLinear, RSign, Sign
from esbnn_core.layers.conv_transpose import check_output_padding
from esbnn_core.layers.products import Products
from esbnn_core.layers.quantizers import STE
from esbnn_core.units.attention import AttentionStyle, BinaryMultiheadAttention

FilterFn = Callable[[str, nn.Module], bool]
Activation = Literal["prelu", "hardtanh", "keep"]


@dataclass(frozen=True)
class BinaryConfig:
    """What binarize_ makes of a convolution, a linear layer or attention.

    Attributes:
        weight_quantizer: as BinaryConv2d.
        ste: estimator of the sign of the activations, as `activation` of BinaryConv2d.
        clip: half width of the "clip" estimator.
        pad_value: as BinaryConv2d; a transposed convolution has no border.
        learned_scale: as BinaryConv2d.
        shift: a learnable RSign shift in front of every binary layer.
        activation: replaces every nn.ReLU and nn.ReLU6, whose sign would be +1 everywhere, and the relu of torch's
            transformer layers. "prelu" has one slope for all channels, so that a shared module serves every width;
            "hardtanh"; "keep" leaves them.
        products: "real" keeps the products of attention, "binary" multiplies signs of queries, keys and values and
            probabilities of one bit, as BinaryViT, in the attention of torch, of torchvision's Swin and of timm.
        filter_fn: (name, module) -> whether to binarize it; None takes every nn.Conv2d, nn.ConvTranspose2d, nn.Linear
            and nn.MultiheadAttention but those that read an input of the network or make one of its outputs, and those
            whose weight another module reads. An nn.MultiheadAttention is taken whole, with its out_proj.

    Raises:
        InputError: an unknown activation or unknown products.
    """

    weight_quantizer: str = "absmean"
    ste: STE = "poly2"
    clip: float = 1.0
    pad_value: int = 0
    learned_scale: bool = False
    shift: bool = True
    activation: Activation = "prelu"
    products: Products = "real"
    filter_fn: FilterFn | None = None

    def __post_init__(self) -> None:
        check_choice("BinaryConfig.activation", self.activation, get_args(Activation))
        check_choice("BinaryConfig.products", self.products, get_args(Products))

    @property
    def attention_style(self) -> AttentionStyle:
        """The part of it that an attention module reads."""
        return AttentionStyle(
            self.shift, self.ste, self.clip, self.weight_quantizer, self.learned_scale, products=self.products
        )

    def make_activation(self) -> nn.Module:
        """What takes the place of a relu."""
        return nn.Hardtanh() if self.activation == "hardtanh" else nn.PReLU()


def binary_form(name: str, module: nn.Module, config: BinaryConfig) -> nn.Module:
    """The binary module of the same geometry whose latent weights and biases are the real module's.

    Args:
        name: of the module, for errors alone.
        module: nn.Conv2d, nn.ConvTranspose2d, nn.Linear or nn.MultiheadAttention.
        config: how to binarise.

    Raises:
        InputError: a convolution with a padding or an output_padding that a binary one does not have.
    """
    on_meta = next(module.parameters()).is_meta
    with torch.device("meta") if on_meta else nullcontext():  # a layer without values draws none
        if isinstance(module, nn.MultiheadAttention):
            return _binary_attention(name, module, config)
        if isinstance(module, nn.Conv2d):
            return _take_over(_binary_conv(name, module, config), module)
        if isinstance(module, nn.ConvTranspose2d):
            return _take_over(_binary_conv_transpose(name, module, config), module)
        assert isinstance(module, nn.Linear)
        with _named(name):
            return binary_linear(module, config)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say of which layer an InputError is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"layer {name} cannot be binary, {error}, or leave it out with filter_fn") from None


def binary_linear(module: nn.Linear, config: BinaryConfig) -> BinaryLinear:
    """The binary form of a linear layer."""
    style = replace(config.attention_style, latent_init="uniform")
    new = style.make_linear(module.in_features, module.out_features, module.bias is not None)
    _take_over(new, module)
    return new


def _sign(channels: int, config: BinaryConfig) -> Sign:
    """The sign before a convolution of `channels` channels."""
    return RSign(channels, config.ste, config.clip) if config.shift else Sign(config.ste, config.clip)


def _padding(name: str, module: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    """Pixels added on each side, those of "same" and "valid" too; refuses another mode and two sides that differ."""
    spans = [
        d * (k - 1) if module.padding == "same" else 0 for d, k in zip(module.dilation, module.kernel_size, strict=True)
    ]
    if module.padding_mode != "zeros" or any(span % 2 for span in spans):
        raise InputError(
            f"padding of layer {name} must be a number in mode 'zeros', got {module.padding!r} in mode "
            f"{module.padding_mode!r}: leave the layer out with filter_fn"
        )
    if isinstance(module.padding, str):
        return spans[0] // 2, spans[1] // 2
    return module.padding[0], module.padding[1]


def _shared(name: str, module: nn.Conv2d | nn.ConvTranspose2d, config: BinaryConfig) -> dict[str, Any]:
    """What both kinds of convolutions take over from the real one and from the config, by argument."""
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": module.kernel_size,
        "stride": module.stride,
        "padding": _padding(name, module),
        "dilation": module.dilation,
        "groups": module.groups,
        "bias": module.bias is not None,
        "weight_quantizer": config.weight_quantizer,
        "activation": _sign(module.in_channels, config),
        "learned_scale": config.learned_scale,
    }


def _binary_conv(name: str, module: nn.Conv2d, config: BinaryConfig) -> BinaryConv2d:
    shared = _shared(name, module, config)
    with _named(name):
        return BinaryConv2d(pad_value=config.pad_value, **shared)


def _binary_conv_transpose(name: str, module: nn.ConvTranspose2d, config: BinaryConfig) -> BinaryConvTranspose2d:
    try:
        check_output_padding(module.output_padding, module.stride, module.dilation)  # type: ignore[arg-type]
    except InputError as error:  # torch refuses it in forward
        raise InputError(f"layer {name} cannot be binary, {error}: leave it out with filter_fn") from None
    shared = _shared(name, module, config)
    with _named(name):
        return BinaryConvTranspose2d(output_padding=module.output_padding, **shared)  # type: ignore[arg-type]


def _take_over(
    new: BinaryConv2d | BinaryConvTranspose2d | BinaryLinear, old: nn.Conv2d | nn.ConvTranspose2d | nn.Linear
) -> nn.Module:
    """Give the new layer the real one's parameters, device, dtype and mode; returns it."""
    new.to(device=old.weight.device, dtype=old.weight.dtype)
    # the same parameters, so that an optimizer that holds them goes on training them
    new.register_parameter("weight", _parameter(old.weight))
    if old.bias is not None:
        new.register_parameter("bias", _parameter(old.bias))
    return new.train(old.training)


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The tensor itself if it is a parameter, else a copy as one; under a parametrization it is none."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


def _binary_attention(name: str, old: nn.MultiheadAttention, config: BinaryConfig) -> BinaryMultiheadAttention:
    """The packed weights of queries, keys and values are copied into three layers; those of the output are kept."""
    bias = old.in_proj_bias is not None
    if old.add_zero_attn and config.products == "binary":
        raise InputError(
            f"attention {name} adds a key of zeros (add_zero_attn), which has no sign: use BinaryConfig(products="
            f"'real') or leave it out with filter_fn"
        )
    new = BinaryMultiheadAttention(
        old.embed_dim,
        old.num_heads,
        old.dropout,
        bias,
        old.bias_k is not None,
        old.add_zero_attn,
        old.kdim,
        old.vdim,
        old.batch_first,
        style=config.attention_style,
    )
    like = old.out_proj.weight
    new.to(device=like.device, dtype=like.dtype)
    packed = old.in_proj_weight
    weights = [old.q_proj_weight, old.k_proj_weight, old.v_proj_weight] if packed is None else packed.chunk(3)
    biases = [None] * 3 if old.in_proj_bias is None else old.in_proj_bias.chunk(3)
    for layer, weight, row in zip((new.q_proj, new.k_proj, new.v_proj), weights, biases, strict=True):
        source = packed if packed is not None else weight
        layer.weight = nn.Parameter(weight.detach().clone(), source.requires_grad)
        if row is not None:
            layer.bias = nn.Parameter(row.detach().clone(), old.in_proj_bias.requires_grad)
    _take_over(new.out_proj, old.out_proj)
    if old.bias_k is not None and old.bias_v is not None:
        new.register_parameter("bias_k", _parameter(old.bias_k))
        new.register_parameter("bias_v", _parameter(old.bias_v))
    return new.train(old.training)
