"""What binarize_ refuses, leaves real or warns of, by name."""

import warnings
from collections.abc import Collection, Mapping, Sequence

from torch import nn
from torch.nn.utils import parametrize

from esbnn_core.errors import InputError
from esbnn_core.transforms.first_batch import named
from esbnn_core.transforms.look import Cause, Look


def check_forms(layers: Mapping[str, nn.Module]) -> None:
    """Raise InputError that names the first layers for which a binary one could not stand."""
    for name, layer in layers.items():
        if isinstance(layer, nn.MultiheadAttention):
            check_forms({f"{name}.out_proj".lstrip("."): layer.out_proj})
            weights = ["in_proj_weight"] if layer.in_proj_weight is not None else ["q_proj_weight", "k_proj_weight"]
            for key in weights:
                if key not in layer._parameters:
                    raise InputError(_computed(f"attention {name}", key))
    layers = {name: layer for name, layer in layers.items() if not isinstance(layer, nn.MultiheadAttention)}
    own = [name for name, layer in layers.items() if _has_own_forward(layer)]
    if own:
        kind = type(layers[own[0]]).__name__
        raise InputError(
            f"{named(own)} of the layers are of the subclass {kind}, whose own forward a binary layer does not have: "
            f"leave them out with filter_fn, or build the network from the plain layers of torch.nn"
        )
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
            raise InputError(_computed(f"layer {name}", "weight"))


def _computed(where: str, key: str) -> str:
    return (
        f"{where} has a {key} that is computed from other tensors (weight_norm, spectral_norm, pruning): make it a "
        f"plain parameter first, with remove_parametrizations, remove_weight_norm or prune.remove"
    )


def _has_own_forward(layer: nn.Module) -> bool:
    kind = type(layer)
    if parametrize.is_parametrized(layer):  # torch makes a class for each; the class below it is the layer's
        kind = kind.__bases__[0]
    plain = next(each for each in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear) if isinstance(layer, each))
    methods = ("forward", "_conv_forward", "_output_padding", "__call__")
    return any(getattr(kind, name, None) is not getattr(plain, name, None) for name in methods)


def weights_read_elsewhere(model: nn.Module, look: Look | None) -> dict[str, str]:
    """Layers whose weight another module multiplies by itself, and which module that is."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            kind = type(module).__name__
            whole = f" (let filter_fn take {name or 'it'} whole)" if kind == "MultiheadAttention" else ""
            found[f"{name}.out_proj".lstrip(".")] = f"its {kind} multiplies by the weight without it{whole}"
    lines = {} if look is None else look.read
    read = {name.rpartition(".")[0]: f"{name}, {line}" for name, line in lines.items()}
    for name, module in model.named_modules():
        if name and name in read and isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            found.setdefault(name, f"the forward of another module reads {read[name]}")
    return found


def warn_of(
    left: Mapping[str, int], shared: Mapping[str, str], positive: Mapping[str, Cause], products: Sequence[str]
) -> None:
    """One warning for what stays real, one for binary layers whose input is never negative.

    Args:
        left: numbers of modules by kind.
        shared: layers whose weight another module reads, and which one.
        positive: what makes the input of a layer non-negative, by the layer's name.
        products: attention modules whose products should be binary and are not.
    """
    real = [f"{number} {kind}" for kind, number in left.items()]
    if shared:
        first, why = next(iter(shared.items()))
        real.append(f"{named(list(shared))} whose weight another module reads ({first}, because {why})")
    if products:
        real.append(f"products of {named(products)}, which BinaryConfig.products does not reach")
    if real:
        warnings.warn(f"binarize_ leaves these layers real: {'; '.join(real)}", stacklevel=3)
    if positive:
        firsts: dict[str, str] = {}  # the first layer after each line of code, and the first after a module
        for name, cause in positive.items():
            firsts.setdefault(cause.line, f"{name} follows {cause}")
        causes = list(firsts.values())
        more = f"; and {len(causes) - 4} more calls" if len(causes) > 4 else ""
        warnings.warn(
            f"{named(list(positive))} of the binary layers have an input that is never negative, so that every sign is "
            f"+1 until their shifts move: {'; '.join(causes[:4])}{more}: replace it by a module with negative values, "
            f"such as nn.PReLU",
            stacklevel=3,
        )


def warn_of_order(model: nn.Module, ends: Collection[nn.Module]) -> None:
    """A warning for a network whose forward does not show what reads its input and makes its outputs."""
    names = [name for name, module in model.named_modules() if module in ends]
    kept = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
    warnings.warn(
        f"binarize_ cannot trace {type(model).__name__} with torch.fx, so that {kept} stay real as the first and the "
        f"last layers that it defines: give example=(images,), the arguments of one forward, or filter_fn to choose",
        stacklevel=3,
    )


def warn_of_calls(look: Look | None) -> None:
    """One warning for products of functions with parameters that are no layer's, which stay real."""
    if look is not None and look.multiplied:
        warnings.warn(
            f"binarize_ leaves these calls real: {named(look.multiplied)}: make each an nn.Conv2d or nn.Linear to have "
            f"it binary",
            stacklevel=3,
        )
