"""binarize_: turn real-valued layers into binary ones."""

from collections import Counter

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from esbnn_core.errors import InputError
from esbnn_core.layers.base import binary_layers
from esbnn_core.transforms.binarize_attention import (
    attention_with_real_products,
    call_binary_layers_,
    layers_to_call,
    replace_functional_relu_,
    self_attentions,
    window_attentions,
)
from esbnn_core.transforms.binarize_checks import (
    check_forms,
    warn_of,
    warn_of_calls,
    warn_of_order,
    weights_read_elsewhere,
)
from esbnn_core.transforms.binarize_modules import BinaryConfig, binary_form
from esbnn_core.transforms.first_batch import FirstBatch
from esbnn_core.transforms.look import Look, Weighted, attention_parts, look_at
from esbnn_core.transforms.record import Example
from esbnn_core.transforms.replace import check_no_hooks, replace_modules

CHOSEN = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MultiheadAttention)
"""What binarize_ asks filter_fn about."""


def _ends(model: nn.Module, look: Look | None) -> set[nn.Module]:
    """The real-valued ends of the network; by the order of definition where the forward cannot be traced.

    A layer by itself has none: it is meant.
    """
    if isinstance(model, CHOSEN):
        return set()
    if look is not None:
        modules = dict(model.named_modules())
        return {modules[name] for name in look.ends}
    convs = [m for m in model.modules() if isinstance(m, _ConvNd)]
    inside = attention_parts(model)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear | nn.MultiheadAttention) and m not in inside]
    weighted = [m for m in model.modules() if isinstance(m, Weighted) and m not in inside]
    first = convs[:1] or linears[:1]
    return {*first, *(linears[-1:] or convs[-1:]), *weighted[-1:]}


def _choose(model: nn.Module, config: BinaryConfig, look: Look | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The modules to binarize by name, and the layers that stay real because another module reads their weight.

    Raises:
        InputError: filter_fn takes such a layer; a layer is lazy.
    """
    ends = _ends(model, look) if config.filter_fn is None else set()
    shared = weights_read_elsewhere(model, look)
    for name in layers_to_call(model):
        shared.pop(name, None)
    chosen: dict[str, nn.Module] = {}
    whole: set[str] = set()  # layers of attention that is taken, or stays real, as one
    for name, module in model.named_modules():
        if not isinstance(module, CHOSEN):
            continue
        if isinstance(module, LazyModuleMixin):
            if config.filter_fn is None or config.filter_fn(name, module):
                raise InputError(
                    f"layer {name} is a {type(module).__name__}, which has no shape yet: run the network once before "
                    f"binarize_"
                )
            continue
        if isinstance(module, nn.MultiheadAttention) and type(module) is not nn.MultiheadAttention:
            continue  # its forward may be another one
        taken = config.filter_fn(name, module) if config.filter_fn is not None else module not in ends
        if isinstance(module, nn.MultiheadAttention) and (taken or module in ends):
            whole.add(f"{name}.out_proj".lstrip("."))
        if not taken or name in whole:
            continue
        if name in shared and config.filter_fn is not None:
            raise InputError(f"layer {name} cannot be binary, {shared[name]}: leave it out with filter_fn")
        if name not in shared:
            chosen[name] = module
    named = {name: why for name, why in shared.items() if name not in whole and config.filter_fn is None}
    return chosen, named


def binarize_(model: nn.Module, config: BinaryConfig | None = None, example: Example | None = None) -> nn.Module:
    """Turn the convolutions, transposed ones too, linear layers and attention of a network into binary ones, in place.

    The real weights stay as latent weights. An nn.MultiheadAttention becomes a BinaryMultiheadAttention, whose
    projections are new parameters: make the optimizer afterwards. What stays real although its kind could be binary or
    its place suggests it (other kinds of convolutions, weights that another module multiplies by itself) is named in
    one warning; binary layers whose input cannot be negative, so that all signs are +1, are named in another, from the
    traced forward where torch.fx can follow it and else from the first batch (esbnn_core.transforms.first_batch).

    Args:
        model: any module.
        config: BinaryConfig() where None.
        example: positional arguments of one forward, for a network that torch.fx cannot trace (a detector): what reads
            its input and makes its outputs is then seen as it runs on them, once, in evaluation mode.

    Returns:
        The same model.

    Raises:
        InputError: nothing matched; a layer that a binary one cannot stand for (another padding mode, a subclass with a
            forward of its own, weight_norm, spectral_norm or pruning, a hook, a lazy one), or one of filter_fn whose
            weight another module reads; all by name. The model is then as it was.
    """
    config = config or BinaryConfig()
    look = look_at(model, example)
    if look is None and config.filter_fn is None and (ends := _ends(model, None)):
        warn_of_order(model, ends)
    chosen, shared = _choose(model, config, look)
    # all are built before the first is swapped: an error leaves the model whole
    check_forms(chosen)
    built = window_attentions(model, chosen, config)
    inside = {part for module in built for part in (module.qkv, module.proj)}
    built |= {m: binary_form(name, m, config) for name, m in chosen.items() if m not in inside}
    if config.products == "binary":
        built |= {
            old: new for old, new in self_attentions(model, config).items() if old.qkv in built or old.proj in built
        }
    left = Counter(type(m).__name__ for m in model.modules() if isinstance(m, _ConvNd) and not isinstance(m, CHOSEN))
    if not built:
        kinds = f": it has {', '.join(f'{n} {kind}' for kind, n in left.items())}, which stay real" if left else ""
        raise InputError(
            f"binarize_ found no nn.Conv2d, nn.ConvTranspose2d or nn.Linear to binarize{kinds}: check filter_fn"
        )

    modules = dict(model.named_modules())
    constant = set() if look is None else {modules[name] for name in look.constant}

    def replaced(module: nn.Module) -> bool:
        return isinstance(module, nn.ReLU | nn.ReLU6) and config.activation != "keep" and module not in constant

    swapped = {part for m in built for part in m.modules()}
    check_no_hooks("binarize_", ((n, m) for n, m in model.named_modules() if m in swapped or replaced(m)))
    sources = look.positive(replaced) if look is not None else {}
    positive = {name: sources[name] for name in chosen if name in sources}

    like = next(parameter for module in chosen.values() for parameter in module.parameters())

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        nonlocal like
        if replaced(module):
            return config.make_activation().to(like.device, like.dtype)  # as the layer before it
        like = next((p for p in module.parameters(recurse=False) if p.is_floating_point()), like)
        return built.get(module)

    for _ in replace_modules(model, replace):
        pass
    model = built.get(model) or model
    if config.activation != "keep":
        replace_functional_relu_(model, config.make_activation)
    call_binary_layers_(model)
    warn_of(left, shared, positive, attention_with_real_products(model) if config.products == "binary" else [])
    warn_of_calls(look)
    FirstBatch(model, [pair for pair in binary_layers(model) if pair[0] not in positive])
    return model
