"""An optimizer's state between two parts of a run: whether it fits the optimizer that goes on, and in which layout."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from esbnn_core.errors import InputError

OPTIMIZER = "esbnn_optimizer"
"""Key of a run's checkpoint: the class of its optimizer."""

MOVED = {"lr", "momentum", "betas"}
"""What torch's schedulers move in an optimizer's groups."""


def name_of(optimizer: Optimizer) -> str:
    """Its class, e.g. "torch.optim.adam.Adam"."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def check_resumed(checkpoint: Mapping[str, Any], optimizer: Optimizer, scheduled: bool) -> None:
    """Compare the optimizer that a command makes with the state that it will load from a checkpoint.

    What the state says of learning rates, decay and the like counts, in torch as in Lightning; a warning names what the
    command says otherwise.

    Args:
        checkpoint: of the run that goes on.
        optimizer: made by its command.
        scheduled: whether a scheduler moves its rates, and perhaps momentum, which then differ from their start.

    Raises:
        InputError: a state of another optimizer, or of other groups of parameters.
    """
    states = checkpoint.get("optimizer_states") or ()
    if not states:
        return
    loaded, made = states[0]["param_groups"], optimizer.param_groups
    noted, mine = checkpoint.get(OPTIMIZER, name_of(optimizer)), name_of(optimizer)
    if noted != mine:
        raise InputError(f"model.optimizer must be that of the checkpoint, {noted}, got {mine}: a run keeps its own")
    sizes, wanted = ([len(group["params"]) for group in groups] for groups in (loaded, made))
    if sizes != wanted:
        raise InputError(
            f"model.decay must be that of the checkpoint, whose optimizer has groups of {_listed(sizes)} parameters, "
            f"got {_listed(wanted)}: a run keeps its own"
        )
    told = {
        f"{key} {_shown(old[key])} in place of {_shown(new[key])}"
        for old, new in zip(loaded, made, strict=True)
        for key in old.keys() & new.keys() - {"params"} - (MOVED if scheduled else set())
        if not _equal(old[key], new[key])
    }
    if told:
        rank_zero_warn(f"the optimizer goes on as its checkpoint says: {', '.join(sorted(told))}")


def follow_layouts_(optimizer: Optimizer) -> None:
    """Give what an optimizer keeps of a parameter the parameter's memory format.

    A state that was loaded has that of the run that saved it, and torch's fused optimizers read both element by
    element of memory.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            of_its_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if of_its_shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, int | float | torch.Tensor) and isinstance(other, int | float | torch.Tensor):
        return math.isclose(float(one), float(other), rel_tol=1e-6)
    same: bool = list(one) == list(other) if isinstance(one, Sequence) and isinstance(other, Sequence) else one == other
    return same


def _shown(value: Any) -> str:
    return f"{float(value):g}" if isinstance(value, float | torch.Tensor) else str(value)


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
