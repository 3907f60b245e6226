"""pack_: turn latent weights into packed bits."""

import torch
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.layers.forwards import has_hooks, runs_as
from esbnn_core.layers.hooks import drop_training_parts_
from esbnn_core.packed.chain import chained
from esbnn_core.packed.match import latent_kind, packed_like
from esbnn_core.packed.pools import PackedAvgPool2d, PackedMaxPool2d
from esbnn_core.packed.stem import PackedStem
from esbnn_core.transforms.fold_real import fold_real_
from esbnn_core.transforms.replace import check_no_hooks, replace_modules
from esbnn_core.units.conv import BinaryUnit


def pack_(model: nn.Module, *, fold_real: bool = False) -> nn.Module:
    """Swap every binary unit, convolution and linear layer for its packed module, in place, and set eval mode.

    In evaluation the packed network computes the numbers of the latent one, bit for bit on a CPU. Units in a row in an
    nn.Sequential pass packed signs on (esbnn_core.packed.chain). `.bfloat16()` of the packed network narrows its
    real-valued layers and the tensors between the units; the sums stay exact. Modules with parts for training alone (a
    method drop_training_parts_, as latent_resnet18 has) lose them. Pooling runs on our own kernels, with the same
    numbers.

    Args:
        model: a latent network, unit or layer.
        fold_real: also call fold_real_, which makes the network faster and rounds its real layers differently: it is
            then no longer the latent one bit for bit.

    Returns:
        The same model without latent weights; for a bare binary layer or unit its packed module.

    Raises:
        InputError: no binary layer; a layer with a hook, or whose weights are not in sign mode, not finite or on the
            meta device; a unit or layer with a forward of its own, or a part of one that the packed form does not have,
            such as a frozen norm (named). The model is then unchanged. With fold_real also what fold_real_ refuses; the
            model is then packed.
    """
    filled: dict[nn.Module, nn.Module] = {}
    covered: set[nn.Module] = set()
    with torch.no_grad():
        for name, module in model.named_modules():
            if module in covered:
                continue
            packed = packed_like(module)
            if packed is not None:
                # a unit packs its convolution; the layers of its shortcut are packed by themselves
                _check_can_be_packed(name, module)
                covered.update(module.conv.modules() if isinstance(module, BinaryUnit) else module.modules())
                filled[module] = packed.fill_(module, name)  # type: ignore[operator]
    if not filled:
        raise InputError("pack_ found no binary layer: give a network of create_model or binarize_, or a binary layer")
    drop_training_parts_(model)
    for _ in replace_modules(model, lambda _, module: filled.get(module)):
        pass
    made = _finish(filled.get(model, model))
    return fold_real_(made) if fold_real else made


def _check_can_be_packed(name: str, module: nn.Module) -> None:
    """Raise InputError for hooks of a latent module that packing would drop, and for weights that are not there."""
    parts = [(f"{name}.{key}" if key else name, part) for key, part in module.named_modules()]
    check_no_hooks("pack_", parts)
    for key, part in parts:
        kind = latent_kind(part)
        if kind is not None and not runs_as(part, kind):
            raise InputError(
                f"{key or 'the model'} must have the forward of {kind.__name__} to be packed, got that of "
                f"{type(part).__name__}, which the packed form would not have: let a module around it do what that adds"
            )
    for key, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise InputError(
                f"{f'{name}.{key}'.lstrip('.')} is on the meta device and has no values to pack: load a file into the "
                f"network first"
            )


def _finish(model: nn.Module) -> nn.Module:
    """Let consecutive packed units pass their signs on, and pools run on our kernel; names and tensors stay."""
    for replace in (chained, _pooled, _stem):
        for _ in replace_modules(model, lambda _, module, replace=replace: replace(module)):  # type: ignore[misc]
            pass
    return (chained(model) or model).eval()


def _pooled(module: nn.Module) -> nn.Module | None:
    """Our pooling for torch's, None for other modules and for one with a hook, which would be lost."""
    return None if has_hooks(module) else PackedMaxPool2d.of(module) or PackedAvgPool2d.of(module)


def _stem(module: nn.Module) -> nn.Module | None:
    """Our row for torch's, None for other modules and for one with a hook, which would be lost."""
    return None if has_hooks(module) else PackedStem.of(module)


def pack_layout_(model: nn.Module) -> nn.Module:
    """As pack_, but with packed modules of zeros, into which a packed file is read; returns as pack_."""
    whole = packed_like(model)
    if whole is not None:
        return whole.eval()
    drop_training_parts_(model)
    for _ in replace_modules(model, lambda _, module: packed_like(module)):
        pass
    return _finish(model)
