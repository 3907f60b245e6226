"""What expand_ takes, and what it reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from esbnn_core.errors import check_choice
from esbnn_core.layers.widths import Expansion

Design = Literal["F1", "F2", "F3"]
"""What expands of a transformer: hidden features of feed-forward parts, what these parts read too, or everything."""


@dataclass(frozen=True)
class ESConfig:
    """What expand_ makes of a network.

    Attributes:
        tau: expansion factor.
        groups: g of the convolutions.
        copy_spread: of the RSign shifts, as ESBinaryConv2d.
        design: what expands of a transformer, see esbnn_core.transforms.expand_designs.

    Raises:
        InputError: an unknown design.
    """

    tau: int = 2
    groups: int = 1
    copy_spread: float = 0.0
    design: Design = "F1"

    def __post_init__(self) -> None:
        check_choice("ESConfig.design", self.design, get_args(Design))

    @property
    def expansion(self) -> Expansion:
        """The same as an Expansion.

        Raises:
            InputError: tau or groups is not a whole number of at least 1.
        """
        return Expansion(self.tau, self.groups, self.copy_spread)


@dataclass(frozen=True)
class ExpansionPlan:
    """What expand_ does with the layers of a network.

    Attributes:
        expanded: names of the layers that become expand-shrink ones: binary ones, and real convolutions between them.
        left: name -> reason for every binary layer that stays plain, and every real convolution with groups among
            expanded layers (it reads copy 0 of each channel, and its output is tiled).
    """

    expanded: tuple[str, ...]
    left: Mapping[str, str]
