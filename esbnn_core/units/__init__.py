"""A binary layer with everything around it: the bricks that networks are made of."""

from esbnn_core.units.attention import AttentionStyle, BinaryMultiheadAttention
from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.folding import fold_norm, folds
from esbnn_core.units.self_attention import SelfAttention
from esbnn_core.units.start import Start, start_apart_
from esbnn_core.units.style import Act, UnitStyle
from esbnn_core.units.timestep import TimestepUnit
from esbnn_core.units.token import TokenUnit
from esbnn_core.units.window_attention import WindowAttention

__all__ = [
    "Act",
    "AttentionStyle",
    "BinaryMultiheadAttention",
    "BinaryUnit",
    "SelfAttention",
    "Start",
    "TimestepUnit",
    "TokenUnit",
    "UnitStyle",
    "WindowAttention",
    "fold_norm",
    "folds",
    "start_apart_",
]
