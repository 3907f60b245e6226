"""A binary layer with everything around it: the bricks that networks are made of."""

from esbnn_core.units.conv import Act, BinaryUnit
from esbnn_core.units.folding import fold_norm, folds
from esbnn_core.units.timestep import TimestepUnit
from esbnn_core.units.token import TokenUnit

__all__ = ["Act", "BinaryUnit", "TimestepUnit", "TokenUnit", "fold_norm", "folds"]
