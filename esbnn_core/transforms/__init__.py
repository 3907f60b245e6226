"""Verbs that change a network in place and return it: binarize_, real_weights_, expand_, pack_, fold_real_."""

from esbnn_core.transforms.binarize import binarize_
from esbnn_core.transforms.binarize_modules import BinaryConfig
from esbnn_core.transforms.expand import expand_, plan_expansion
from esbnn_core.transforms.expand_plan import ESConfig, ExpansionPlan
from esbnn_core.transforms.fold_real import fold_real_
from esbnn_core.transforms.pack import pack_
from esbnn_core.transforms.real_weights import real_weights_

__all__ = [
    "BinaryConfig",
    "ESConfig",
    "ExpansionPlan",
    "binarize_",
    "expand_",
    "fold_real_",
    "pack_",
    "plan_expansion",
    "real_weights_",
]
