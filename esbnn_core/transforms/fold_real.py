"""fold_real_: real layers of a packed network in fewer steps, rounded differently."""

import copy
from collections import Counter, OrderedDict

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError
from esbnn_core.layers import Tile
from esbnn_core.layers.forwards import has_hooks, runs_as
from esbnn_core.packed.layers import is_packed
from esbnn_core.packed.pools import FoldedMean, PackedMaxPool2d
from esbnn_core.packed.real import FoldedConv2d, FoldedLinear, TiledAffine
from esbnn_core.packed.stem import PackedStem
from esbnn_core.transforms.replace import check_no_hooks, replace_modules
from esbnn_core.units.folding import fold_norm, folds


def fold_real_(model: nn.Module) -> nn.Module:
    """Make the real layers of a packed network faster, in place, by rounding them differently.

    - A BatchNorm after a convolution in an nn.Sequential (stems, shortcuts) is folded into it. Weight and bias are
      worked out in float64 and rounded once.
    - Where copies of the maps are between them (ES) it becomes one factor and offset per channel, after the stem's
      max-pooling, which then pools the maps once and not their copies.
    - These convolutions run on our own kernel on a CPU in float32, and give maps in channels_last for any input.
    - Linear layers run on the same kernel. Means over all pixels are added in another order, in part in float64.

    Binary layers stay as they are, with exact sums. But a sign that hangs on the last bits of a real sum may turn, and
    one turned sign changes many after it: the logits are those of the unfolded network up to rounding only for images
    in which no sign turns. Of 128 images of random numbers through four untrained networks 9 had such a sign, and their
    logits moved by up to 0.16 of the largest (docs/guides/deploy.md). An exported or compiled program runs torch's
    convolutions in place of ours, which turns other signs.

    The folded network is for running: a file of it cannot be written (save_checkpoint refuses), packed files stay exact
    and are folded after they are read.

    Args:
        model: a packed network in evaluation mode, on any device.

    Returns:
        The same model.

    Raises:
        InputError: a network that is not packed, or has nothing to fold (named: what is folded); a layer with a hook.
            The model is then unchanged.
    """
    if not is_packed(model):
        raise InputError("fold_real_ is for a packed network, got a latent one: call pack_ first")
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    rows = [(name, module, _steps(module, uses)) for name, module in model.named_modules() if _is_row(module)]
    found = [(name, row, steps) for name, row, steps in rows if steps is not None]
    if not found:
        raise InputError(
            "the network must have a BatchNorm after a real convolution in an nn.Sequential for fold_real_, got none: "
            "it is folded already, or its forward calls them one by one"
        )
    check_no_hooks("fold_real_", ((f"{name}.{key}", part) for name, row, _ in found for key, part in _parts(row)))
    with torch.no_grad():
        for _, row, steps in found:
            row._modules = steps  # type: ignore[assignment]
        for _ in replace_modules(model, lambda _, module: _linear(module) or _mean(module)):
            pass
    return model.eval()


def _linear(module: nn.Module) -> nn.Module | None:
    """The folded layer for a linear one, None for others, for one with a hook and for one that has no weights here."""
    plain = type(module) is nn.Linear and not has_hooks(module) and not module.weight.is_meta
    return FoldedLinear(module) if plain else None  # type: ignore[arg-type]


def _mean(module: nn.Module) -> nn.Module | None:
    """Our mean over all pixels for torch's, None for other modules and for one with a hook."""
    return None if has_hooks(module) else FoldedMean.of(module)


def _is_row(module: nn.Module) -> bool:
    return type(module) in (nn.Sequential, PackedStem)


def _parts(row: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children that folding swaps for others."""
    return [(key, part) for key, part in row.named_children() if isinstance(part, nn.Conv2d | nn.BatchNorm2d | Tile)]


def _steps(row: nn.Module, uses: Counter[int]) -> "OrderedDict[str, nn.Module] | None":
    """The children of a row with every convolution and its norm folded; None if there are none."""
    children = list(row.named_children())
    steps = OrderedDict[str, nn.Module]()
    changed = False
    while children:
        key, conv = children.pop(0)
        tiled = bool(children) and isinstance(children[0][1], Tile) and children[0][1].dim == 1
        place = 1 if tiled else 0
        norm = children[place][1] if len(children) > place else nn.Identity()
        mine = [conv, norm, *([children[0][1]] if tiled else [])]
        if type(conv) is not nn.Conv2d or not _can_fold(norm) or any(uses[id(part)] > 1 for part in mine):
            steps[key] = conv
            continue
        assert isinstance(norm, nn.BatchNorm2d)
        scale, offset = affine_of(norm)
        del children[: place + 1]
        changed = True
        if not tiled:
            pool = _pool_of(children.pop(0)[1]) if children and _pool_of(children[0][1]) else None
            steps[key] = FoldedConv2d(conv, scale, offset, pool=pool)
        elif children and _pool_of(children[0][1]):
            pool = _pool_of(children.pop(0)[1])
            filters, signs, positions = signed_filters(conv.out_channels, scale)
            copies = TiledAffine(_as(conv, scale.abs()), _as(conv, offset), len(filters), positions)
            steps[key] = FoldedConv2d(conv, signs, None, filters, pool, copies)
        else:
            copies = TiledAffine(_as(conv, scale), _as(conv, offset), conv.out_channels)
            steps[key] = FoldedConv2d(conv, copies=copies)
    return steps if changed else None


def _can_fold(norm: nn.Module) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and folds(norm)


def _pool_of(module: nn.Module) -> nn.MaxPool2d | None:
    if isinstance(module, nn.MaxPool2d) and runs_as(module, nn.MaxPool2d, PackedMaxPool2d):
        return None if module.return_indices else module
    return None


def _as(conv: nn.Conv2d, numbers: Tensor) -> Tensor:
    return numbers.to(conv.weight.dtype)


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and offset (C,) of a BatchNorm in evaluation, float64."""
    factor, offset = fold_norm(None, None, copy.deepcopy(norm).double(), 1)
    assert factor is not None and offset is not None
    return factor.detach(), offset.detach()


def signed_filters(channels: int, scale: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What lets a max-pooling go before a factor per channel: max(a * x) = |a| * max(sign(a) * x).

    Args:
        channels: C that are copied.
        scale: a, (copies*C,).

    Returns:
        The filters to have (F,), the sign of each (F,), and which of them each copy reads (copies*C,): None if that is
        the tile's own order. A filter is there twice if its copies have factors of both signs.
    """
    wanted = [(j % channels, value < 0) for j, value in enumerate(scale.tolist())]
    kept = wanted[:channels]
    kept += sorted(set(wanted) - set(kept))
    place = {filter_and_sign: number for number, filter_and_sign in enumerate(kept)}
    filters = torch.tensor([channel for channel, _ in kept], device=scale.device)
    signs = torch.tensor([-1.0 if negative else 1.0 for _, negative in kept], device=scale.device)
    if len(kept) == channels:
        return filters, signs, None
    return filters, signs, torch.tensor([place[one] for one in wanted], device=scale.device)
