"""What binarize_ knows of the attention modules of torch, torchvision, timm and diffusers.

A module that multiplies by the weights of its layers itself would step around a binary layer. It is replaced, or told
by an option of its own to call them.
"""

from collections.abc import Callable, Collection
from typing import Any, NoReturn, cast

from torch import nn
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.transforms.binarize_modules import BinaryConfig, binary_linear
from esbnn_core.units.attention import BinaryMultiheadAttention
from esbnn_core.units.self_attention import SelfAttention
from esbnn_core.units.window_attention import WindowAttention

SEPARATE = "qkv_bias_separate"
"""An option of timm's BEiT, EVA and Swin V2: whether qkv is called and its bias added, or its weight is read."""


def is_window_attention(module: nn.Module) -> bool:
    """Whether it is torchvision's attention of Swin, which multiplies by the weights of its layers itself."""
    kind = type(module)
    names = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__ in names


def _window_attention(old: Any, config: BinaryConfig, qkv: bool, proj: bool) -> WindowAttention:
    """What takes the place of torchvision's attention of Swin: its layers are called, and binary where asked for.

    Args:
        old: a module for which is_window_attention holds.
        config: how to binarise.
        qkv: whether the layer of queries, keys and values becomes binary.
        proj: whether the layer of the output does.
    """
    cosine = hasattr(old, "logit_scale")
    first = old.qkv
    if cosine and first.bias is not None:  # the bias of keys is set to 0 in each forward
        first = nn.Linear(first.in_features, first.out_features, bias=False, device="meta")
        first.weight = old.qkv.weight
        first.train(old.qkv.training)
    new = WindowAttention(
        binary_linear(first, config) if qkv else first,
        binary_linear(old.proj, config) if proj else old.proj,
        config.attention_style.make_products(old.proj.in_features, old.num_heads, cosine),
        old.window_size,
        old.shift_size,
        old.attention_dropout,
        old.dropout,
    )
    new.products.to(device=old.proj.weight.device, dtype=old.proj.weight.dtype)
    for key in ("relative_position_index", *(("relative_coords_table", "logit_scale", "cpb_mlp") if cosine else ())):
        setattr(new, key, getattr(old, key))
    if cosine:
        new.qkv_bias = old.qkv.bias
    else:
        new.relative_position_bias_table = old.relative_position_bias_table
    new.training = old.training
    new.products.train(old.training)
    return new


def window_attentions(model: nn.Module, chosen: Collection[str], config: BinaryConfig) -> dict[nn.Module, nn.Module]:
    """torchvision's attention of Swin of which a layer is among the chosen names, and what takes its place."""
    built: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if is_window_attention(module):
            qkv, proj = (f"{name}.{key}".lstrip(".") in chosen for key in ("qkv", "proj"))
            if qkv or proj:
                built[module] = _window_attention(module, config, qkv, proj)
    return built


def self_attentions(model: nn.Module, config: BinaryConfig) -> dict[nn.Module, nn.Module]:
    """timm's attention whose products become binary, and what takes its place; its layers are swapped afterwards."""
    built: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        kind, old = type(module), cast("Any", module)
        timms = (kind.__module__, kind.__name__) == ("timm.layers.attention", "Attention")
        if timms and all(
            hasattr(module, key) for key in ("attn_dim", "qkv", "norm", "gate")
        ):  # of a timm that has these
            products = config.attention_style.make_products(old.attn_dim, old.num_heads)
            products.to(device=old.proj.weight.device, dtype=old.proj.weight.dtype)
            built[module] = SelfAttention(old, products.train(module.training))
    return built


def layers_to_call(model: nn.Module) -> set[str]:
    """Layers whose weight a module reads that binarize_ replaces, or that calls them once it is told to."""
    keys = {name: ("qkv", "proj") for name, module in model.named_modules() if is_window_attention(module)}
    keys |= {name: ("qkv",) for name, module in model.named_modules() if hasattr(module, SEPARATE)}
    return {f"{name}.{key}".lstrip(".") for name, held in keys.items() for key in held}


def call_binary_layers_(model: nn.Module) -> None:
    """Let the modules that are left call their binary layers.

    torch's encoder layer takes its fused path only for an activation that is relu or gelu, which an attribute records,
    and its encoder only if made with enable_nested_tensor. A BinaryMultiheadAttention has no in_proj_bias, a third
    condition.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _holds_binary(module):
            module.activation_relu_or_gelu = 0  # forward reads it for nothing else
        if isinstance(module, nn.TransformerEncoder) and _holds_binary(module):
            module.use_nested_tensor = False
        if hasattr(module, SEPARATE) and isinstance(getattr(module, "qkv", None), BinaryLayer):
            setattr(module, SEPARATE, True)
        if hasattr(module, "fuse_projections") and any(isinstance(part, BinaryLayer) for part in module.children()):
            vars(module)["fuse_projections"] = refuse_to_fuse


def refuse_to_fuse(fuse: bool = True) -> NoReturn:
    """In the place of the method of diffusers' attention that makes one real layer of three latent weights."""
    raise InputError(
        "projections of attention must be real to be fused, got binary ones: call fuse_qkv_projections() before "
        "binarize_"
    )


def replace_functional_relu_(model: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Give torch's transformer layers a module in place of the function relu between their linear layers."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) and module.activation is F.relu:
            like = next(module.parameters())
            module.activation = make().to(device=like.device, dtype=like.dtype).train(module.training)


def attention_with_real_products(model: nn.Module) -> list[str]:
    """Modules that are called attention, hold binary layers and multiply queries and keys by themselves."""
    known = (BinaryMultiheadAttention, SelfAttention, WindowAttention)
    return [
        name
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__
        and not isinstance(module, known)
        and any(isinstance(part, BinaryLayer) for part in module.children())
    ]


def _holds_binary(module: nn.Module) -> bool:
    return any(isinstance(part, BinaryLayer) for part in module.modules())
