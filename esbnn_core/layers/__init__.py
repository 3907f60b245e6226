"""Binary and expand-shrink layers: what a network of the papers is made of."""

from esbnn_core.layers.activations import PositiveSign, RPReLU, RSign, Sign
from esbnn_core.layers.attention import BinaryMatmul, BinarySoftmax, LayerScale
from esbnn_core.layers.conv import BinaryConv2d, ESBinaryConv2d
from esbnn_core.layers.conv_transpose import BinaryConvTranspose2d, ESBinaryConvTranspose2d
from esbnn_core.layers.linear import BinaryLinear, ESBinaryLinear
from esbnn_core.layers.shortcut import PadShortcut
from esbnn_core.layers.squeeze_excite import SqueezeExcite
from esbnn_core.layers.tile import OutputSized, SelectChannels, SliceChannels, Tile
from esbnn_core.layers.timestep import TimestepRPReLU, TimestepShift, timestep_group
from esbnn_core.layers.widths import Expansion

__all__ = [
    "BinaryConv2d",
    "BinaryConvTranspose2d",
    "BinaryLinear",
    "BinaryMatmul",
    "BinarySoftmax",
    "ESBinaryConv2d",
    "ESBinaryConvTranspose2d",
    "ESBinaryLinear",
    "Expansion",
    "LayerScale",
    "OutputSized",
    "PadShortcut",
    "PositiveSign",
    "RPReLU",
    "RSign",
    "SelectChannels",
    "Sign",
    "SliceChannels",
    "SqueezeExcite",
    "Tile",
    "TimestepRPReLU",
    "TimestepShift",
    "timestep_group",
]
