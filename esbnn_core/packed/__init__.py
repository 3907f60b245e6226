"""Inference modules that hold bit-words and folded affines, and nothing else."""

from esbnn_core.packed.chain import PackedChain
from esbnn_core.packed.conv_transpose import PackedConvTranspose2d
from esbnn_core.packed.layers import PackedConv2d, PackedLayer, PackedLinear, is_packed
from esbnn_core.packed.match import packed_like, packs
from esbnn_core.packed.pools import FoldedMean, PackedAvgPool2d, PackedMaxPool2d
from esbnn_core.packed.real import FoldedConv2d, TiledAffine
from esbnn_core.packed.stem import PackedStem
from esbnn_core.packed.timestep import PackedTimestepUnit
from esbnn_core.packed.units import PackedTokenUnit, PackedUnit

__all__ = [
    "FoldedConv2d",
    "FoldedMean",
    "PackedAvgPool2d",
    "PackedChain",
    "PackedConv2d",
    "PackedConvTranspose2d",
    "PackedLayer",
    "PackedLinear",
    "PackedMaxPool2d",
    "PackedStem",
    "PackedTimestepUnit",
    "PackedTokenUnit",
    "PackedUnit",
    "TiledAffine",
    "is_packed",
    "packed_like",
    "packs",
]
