"""pack_: from latent weights to packed bits."""

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.hooks import drop_training_parts_
from esbnn_core.packed.chain import chained
from esbnn_core.packed.match import packed_like
from esbnn_core.transforms.replace import replace_modules
from esbnn_core.units.conv import BinaryUnit


def pack_(model: nn.Module) -> nn.Module:
    """Swap every binary unit, convolution and linear layer for its packed module, in place; sets eval mode.

    Outside training the packed network computes the same numbers as the latent one, bit for bit on a CPU. Units that
    follow each other in an nn.Sequential hand packed signs on (esbnn_core.packed.chain). `.bfloat16()` of the packed
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
