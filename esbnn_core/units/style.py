"""UnitStyle: how a family of networks binarises, the same for each of its units."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from esbnn_core.errors import InputError, check_choice
from esbnn_core.layers import RPReLU
from esbnn_core.layers.base import LatentInit
from esbnn_core.layers.conv import PAD_VALUES
from esbnn_core.layers.quantizers import STE, WEIGHT_QUANTIZERS, WeightQuantizer

Act = Literal["none", "rprelu", "prelu", "hardtanh"]


@dataclass(frozen=True)
class UnitStyle:
    """How a BinaryUnit binarises; the default is ReActNet's.

    Attributes:
        shift: RSign, with a learnable shift, or the bare sign.
        ste: estimator of the sign of the activations, see sign_ste of esbnn_core.layers.quantizers.
        clip: half width of the "clip" estimator.
        weight_quantizer: a name of WEIGHT_QUANTIZERS, or a function that makes a quantizer for each unit.
        learned_scale: a learnable scale for each filter (ReCU).
        latent_init: start of the latent weights, see LatentInit of esbnn_core.layers.base.
        pad_value: of the border after the sign, 0 or -1.
        act: activation after the shortcut: "rprelu", "prelu", "hardtanh" or "none".

    Raises:
        InputError: an unknown value; a quantizer in the place of a function that makes one.
    """

    shift: bool = True
    ste: STE = "poly2"
    clip: float = 1.0
    weight_quantizer: str | Callable[[], WeightQuantizer] = "absmean"
    learned_scale: bool = False
    latent_init: LatentInit = "uniform"
    pad_value: int = 0
    act: Act = "rprelu"

    def __post_init__(self) -> None:
        check_choice("ste", self.ste, get_args(STE))
        check_choice("latent_init", self.latent_init, get_args(LatentInit))
        check_choice("pad_value", self.pad_value, PAD_VALUES)
        check_choice("act", self.act, get_args(Act))
        if isinstance(self.weight_quantizer, nn.Module):
            raise InputError(
                f"weight_quantizer of a UnitStyle must be a name or a function, got a "
                f"{type(self.weight_quantizer).__name__}: all units would share it, so give its class or a partial"
            )
        if not callable(self.weight_quantizer):
            check_choice("weight_quantizer", self.weight_quantizer, WEIGHT_QUANTIZERS)


DEFAULT_STYLE = UnitStyle()


def make_act(act: Act, channels: int) -> nn.Module:
    """The activation of that name over `channels` channels.

    Raises:
        InputError: an unknown name.
    """
    check_choice("act", act, get_args(Act))
    if act == "rprelu":
        return RPReLU(channels)
    if act == "prelu":
        return nn.PReLU(channels)
    return nn.Hardtanh() if act == "hardtanh" else nn.Identity()
