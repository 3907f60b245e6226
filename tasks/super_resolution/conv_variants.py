"""The variants of a convolution C -> C in the UNet: BI-Conv, the binary units of the baselines, or a real one."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers.widths import PLAIN, Expansion, es_widths, tile
from esbnn_core.units.timestep import TimestepUnit

Variant = Literal["bi", "real", "bnn", "dorefa", "xnor", "irnet", "reactnet", "bbcu"]
CopyRule = Literal["block", "mix"]
RealPath = Literal["slice", "carry"]

_BARE = {"ste": "clip", "shift": False, "act": "none", "residual": "none", "timestep_groups": 1}

VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "bi": {},
        "real": {},
        "bnn": {**_BARE, "weight_quantizer": "sign"},
        "dorefa": {**_BARE, "weight_quantizer": "absmean_layer"},
        "xnor": {**_BARE, "weight_quantizer": "absmean"},
        "irnet": {**_BARE, "weight_quantizer": "libra"},
        "reactnet": {"residual": "before_act", "timestep_groups": 1},
        "bbcu": {"timestep_groups": 1},
    }
)
"""By variant, the options of TimestepUnit that differ from its defaults. The defaults are BI-Conv: poly2 STE of the
activation, clip STE and alpha = mean |W| per filter of the weight, shift, RPReLU, input added after it, K groups of
timesteps.

"bi"        BI-DiffSR's BI-Conv.
"real"      an ordinary convolution with bias in place of every unit, as in SR3's UNet.
"bnn"       sign(W) without a scale; sign of the activation with the clip STE; no shift, activation or residual.
"dorefa"    as bnn, with one scale for the layer, mean |W|, and the identity STE of the weight.
            Differs from the paper: DoReFa-Net's 1-bit activations are 0 and 1, here -1 and +1 as in every variant.
"xnor"      as bnn, with a scale for each filter, mean |W|.
            Differs from the paper: no scales of the activation, no gradient through those of the weight.
"irnet"     as bnn, with the sign of the standardised weight and a power of two as scale.
            Differs from the paper: the clip STE in place of the estimator that sharpens over the epochs.
"reactnet"  BI-Conv with one group, the input added before the RPReLU.
"bbcu"      BI-Conv with one group: without BatchNorm, the RPReLU inside the residual connection.
            Differs from the paper: the network's input is not scaled up, and a GroupNorm precedes each unit.

Differs from the paper: here all are in BI-DiffSR's UNet, in which the binary ones have 4.23 M to 4.30 M parameters in
words of 32 bits and the real one 50.95 M. The published rows have 4.78 M to 4.85 M at 37.93 G operations, so their
layout differs. SR3 has 55.41 M there, which by our count is the UNet of these widths with strided convolutions on the
way down, doubled pixels and a convolution on the way up, and skips joined by concatenation.
"""


class Moment(NamedTuple):
    """The timestep as the blocks read it.

    Attributes:
        embedding: (N, E), or (1, E) for a whole batch at one timestep.
        group: int64 (N,) or (1,), of TimestepUnit.
    """

    embedding: Tensor
    group: Tensor


class RealConv(nn.Conv2d):
    """An ordinary convolution with bias in place of a unit: (N, tau*g*C, H, W) -> the same shape, shrunk and tiled.

    Args:
        channels: nominal C.
        kernel_size: odd.
        expansion: as TimestepUnit; without it the plain convolution.
        name: for errors alone.
    """

    def __init__(self, channels: int, kernel_size: int, expansion: Expansion = PLAIN, name: str = "") -> None:
        widths = es_widths(channels, channels, expansion, layer=name)
        super().__init__(widths.carried_in, widths.filters, kernel_size, padding=kernel_size // 2, groups=widths.groups)
        self.copies = widths.copies

    def forward(self, x: Tensor, group: Tensor) -> Tensor:  # type: ignore[override]
        return tile(super().forward(x), self.copies)


@dataclass(frozen=True)
class ConvStyle:
    """How the convolutions of a part of the UNet are made.

    Attributes:
        variant: a key of VARIANTS.
        timestep_groups: K, of "bi".
        expansion: of every convolution.
        copy_rule: "block" does what the plain network does to its channels inside each of the tau*g copies, "mix" does
            it to all channels at once.

    Raises:
        InputError: an unknown variant or rule; a spread for a variant without shift.
    """

    variant: Variant = "bi"
    timestep_groups: int = 5
    expansion: Expansion = PLAIN
    copy_rule: CopyRule = "block"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, get_args(Variant))
        check_choice("copy_rule", self.copy_rule, get_args(CopyRule))
        spread = self.expansion.copy_spread
        if spread and (self.variant == "real" or not VARIANTS[self.variant].get("shift", True)):
            raise InputError(
                f"copy_spread={spread} was given with variant {self.variant!r}, which has no shift to "
                f"spread: leave it at 0 or choose bi, reactnet or bbcu"
            )

    @property
    def wide(self) -> int:
        """tau*g, the number of copies of the nominal channels."""
        return self.expansion.wide

    @property
    def blocks(self) -> int:
        """Blocks of channels that a layer divides, each by itself."""
        return self.wide if self.copy_rule == "block" else 1

    def conv(self, channels: int, kernel_size: int, name: str) -> nn.Module:
        """A convolution C -> C at the carried width, called with (x, group)."""
        if self.variant == "real":
            return RealConv(channels, kernel_size, self.expansion, name)
        options: dict[str, Any] = {"timestep_groups": self.timestep_groups, **VARIANTS[self.variant]}
        return TimestepUnit(channels, kernel_size, expansion=self.expansion, name=name, **options)


def select_channels(x: Tensor, blocks: int, channels: slice) -> list[Tensor]:
    """These channels of each block of x (N, blocks*C, H, W), as views."""
    return [block[:, channels] for block in x.chunk(blocks, 1)]


def interleave(*sources: list[Tensor]) -> Tensor:
    """Join the sources' parts side by side in every block: (N, blocks * their channels, H, W), in their memory format.

    All maps have four dimensions, because torch keeps channels_last only for these.
    """
    parts = [part for block in zip(*sources, strict=True) for part in block]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
