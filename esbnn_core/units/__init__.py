"""A binary layer with everything around it: the bricks that networks are made of."""

from esbnn_core.units.conv import BinaryUnit
from esbnn_core.units.folding import fold_norm, folds
from esbnn_core.units.style import Act, UnitStyle
from esbnn_core.units.timestep import TimestepUnit
from esbnn_core.units.token import TokenUnit

__all__ = ["Act", "BinaryUnit", "TimestepUnit", "TokenUnit", "UnitStyle", "fold_norm", "folds"]
