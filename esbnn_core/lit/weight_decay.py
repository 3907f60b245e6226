"""Weight decay and learning rate by kind of parameter: the groups that the originals' optimizers have, and our own.

Source: papers.md#two-steps, #bnext-optimizer, #recu; "affine" is ours.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import Optimizer

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import RPReLU, RSign, TimestepShift
from esbnn_core.layers.base import BinaryLayer

Kind = Literal["conv", "weights", "affine"]
NORMS = nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm


@dataclass(frozen=True)
class DecayRule:
    """Weight decay of the parameters of one kind, and of all others, and the learning rate of that kind.

    It replaces the optimizer's own weight_decay; for one decay on all parameters set that and no rule.

    Attributes:
        kind: "conv": what has four dimensions in the originals of ReActNet and BNext: convolution weights (also of the
            stem and the squeeze-excite gates), BNext's mixes, and the shifts of RSign and RPReLU, (1, C, 1, 1) there
            and (C,) here. "weights": the weights of convolutions and linear layers. "affine": the shifts
            in front of signs and the weights and biases of norms, what esbnn_core.Start lets start apart.
        value: weight decay of these.
        rest: weight decay of all others.
        rate: learning rate of these as a multiple of the optimizer's.

    Raises:
        InputError: a negative decay or rate, or an unknown kind.
    """

    kind: Kind
    value: float
    rest: float = 0.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        check_choice("kind of decay", self.kind, get_args(Kind))
        for name in ("value", "rest", "rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} of decay must be a finite number of at least 0, got {getattr(self, name)}")

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Two parameter groups for a torch optimizer: every parameter once, in the order of the network.

        Raises:
            InputError: a network without a parameter of the kind.
        """
        chosen = self.chosen(network)
        if not chosen:
            raise InputError(
                f"network of a decay must have parameters of its kind, {type(network).__name__} has none of "
                f"{self.kind!r}: leave the decay out or choose another kind"
            )
        parts = ((self.value, True), (self.rest, False))
        return [
            {"params": [p for n, p in network.named_parameters() if (n in chosen) is inside], "weight_decay": decay}
            for decay, inside in parts
        ]

    def scale_rates(self, optimizer: Optimizer) -> None:
        """Give the parameters of the kind their learning rate, in an optimizer that was made of `groups`."""
        optimizer.param_groups[0]["lr"] *= self.rate

    def keep_rate(self, optimizer: Optimizer) -> None:
        """As scale_rates, from the learning rate that all others have now."""
        optimizer.param_groups[0]["lr"] = self.rate * optimizer.param_groups[-1]["lr"]

    def check_rates(self, optimizer: Optimizer, scheduler: Any) -> None:
        """Raise InputError unless a scheduler that was made for the optimizer leaves the kind its learning rate."""
        floor = _lowest_rate(scheduler)
        if self.rate != 1 and floor > 0:
            raise InputError(
                f"lr_scheduler must keep the rate {self.rate} of decay, got {type(scheduler).__name__} with the lowest "
                f"learning rate {floor} for all: take one that scales the optimizer's, like ProgressLR with a floor"
            )
        mine, others = (group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
        if self.rate != 1 and not math.isclose(mine, self.rate * others):
            raise InputError(
                f"lr_scheduler must keep the rate {self.rate} of decay, got learning rates {mine} and {others}: take "
                f"one that scales the optimizer's, like ProgressLR, not one with a maximum of its own"
            )

    def chosen(self, network: nn.Module) -> set[str]:
        """Names of the parameters that decay by `value`; a shared parameter under the first of its names."""
        ids: set[int] = set()
        for module in network.modules():
            if self.kind == "weights":
                if isinstance(module, BinaryLayer | nn.Linear | nn.modules.conv._ConvNd):
                    ids.add(id(module.weight))
                continue
            if self.kind == "affine":
                if isinstance(module, NORMS | RSign):
                    ids.update(id(p) for p in module.parameters(recurse=False))
                elif isinstance(module, TimestepShift):
                    ids.update(id(p) for p in module.shifts)
                continue
            if isinstance(module, RSign):
                ids.add(id(module.shift))
            elif isinstance(module, RPReLU):
                ids.update((id(module.shift_in), id(module.shift_out)))
            ids.update(id(p) for p in module.parameters(recurse=False) if p.dim() == 4)
        return {name for name, parameter in network.named_parameters() if id(parameter) in ids}


def _lowest_rate(scheduler: Any) -> float:
    """What torch's scheduler, or one of those in it, does not go below; 0 without such a number."""
    inner = [_lowest_rate(one) for one in getattr(scheduler, "_schedulers", ())]
    return max([float(getattr(scheduler, "eta_min", 0.0)), *map(float, getattr(scheduler, "min_lrs", ())), *inner])
