"""Weight decay by kind of parameter: the groups that the originals' optimizers have.

Source: papers.md#two-steps, #bnext-optimizer, #recu.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import RPReLU, RSign
from esbnn_core.layers.base import BinaryLayer

Kind = Literal["conv", "weights"]


@dataclass(frozen=True)
class DecayRule:
    """Weight decay of the parameters of one kind, and of all others.

    It replaces the optimizer's own weight_decay; for one decay on all parameters set that and no rule.

    Attributes:
        kind: "conv": what has four dimensions in the originals of ReActNet and BNext: convolution weights (also of the
            stem and the squeeze-excite gates), BNext's mixes, and the shifts of RSign and RPReLU, (1, C, 1, 1) there
            and (C,) here. "weights": the weights of convolutions and linear layers.
        value: weight decay of these.
        rest: weight decay of all others.

    Raises:
        InputError: a negative decay or an unknown kind.
    """

    kind: Kind
    value: float
    rest: float = 0.0

    def __post_init__(self) -> None:
        check_choice("kind of decay", self.kind, get_args(Kind))
        for name in ("value", "rest"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} of decay must be a number of at least 0, got {getattr(self, name)}")

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Two parameter groups for a torch optimizer: every parameter once, in the order of the network."""
        chosen = self.chosen(network)
        parts = ((self.value, True), (self.rest, False))
        return [
            {"params": [p for n, p in network.named_parameters() if (n in chosen) is inside], "weight_decay": decay}
            for decay, inside in parts
        ]

    def chosen(self, network: nn.Module) -> set[str]:
        """Names of the parameters that decay by `value`; a shared parameter under the first of its names."""
        ids: set[int] = set()
        for module in network.modules():
            if self.kind == "weights":
                if isinstance(module, BinaryLayer | nn.Linear | nn.modules.conv._ConvNd):
                    ids.add(id(module.weight))
                continue
            if isinstance(module, RSign):
                ids.add(id(module.shift))
            elif isinstance(module, RPReLU):
                ids.update((id(module.shift_in), id(module.shift_out)))
            ids.update(id(p) for p in module.parameters(recurse=False) if p.dim() == 4)
        return {name for name, parameter in network.named_parameters() if id(parameter) in ids}
