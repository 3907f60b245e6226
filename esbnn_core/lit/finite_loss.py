"""Find where a loss stopped being a number: the first parameter or output of a network that is not finite."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.errors import TrainingError


def check_finite(
    loss: Tensor,
    step: int,
    network: nn.Module,
    images: Tensor | tuple[Tensor, ...],
    run: Callable[[], Any] | None = None,
) -> None:
    """Raise TrainingError for a loss that is not finite; it names the step and the first place that is not finite.

    Args:
        loss: a scalar.
        step: of the run.
        network: that gave it.
        images: as first_not_finite's.
        run: as first_not_finite's.
    """
    if not torch.isfinite(loss):
        where = first_not_finite(network, images, run)
        raise TrainingError(
            f"the loss is {loss.item()} at step {step}, first not finite in {where}: lower the learning rate or look "
            f"at that batch"
        )


@torch.no_grad()
def first_not_finite(
    network: nn.Module, images: Tensor | tuple[Tensor, ...], run: Callable[[], Any] | None = None
) -> str:
    """Name of the first parameter or module output that is not finite for this batch, in the order of the forward.

    Args:
        network: as it is after the step.
        images: of the batch, all that the network is given.
        run: runs the network on the batch, default on the images.
    """
    if not all(torch.isfinite(tensor).all() for tensor in _tensors(images)):
        return "the images"
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            if not found and not all(torch.isfinite(tensor).all() for tensor in _tensors(output)):
                found.append(f"the output of {name or 'the network'}")

        return look

    hooks = [module.register_forward_hook(hook(name)) for name, module in network.named_modules()]
    try:
        if run is None:
            network(images)
        else:
            run()
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else "the loss itself"


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every floating tensor in a module's output, also inside tuples, lists and dicts."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors(item)
