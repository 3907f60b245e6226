"""Expanding-and-shrinking binary neural networks: layers, networks, packing, counting, checkpoints.

Importing this package needs torch alone, touches no GPU and compiles nothing.
"""

from esbnn_core.checkpoint import create_model, load_checkpoint, pack_checkpoint, read_checkpoint, save_checkpoint
from esbnn_core.counting import Count, count
from esbnn_core.errors import InputError, TrainingError
from esbnn_core.models import list_models, model_spec
from esbnn_core.training.on_bits import TrainOnBits, bit_training_report, train_on_bits_, train_plain_
from esbnn_core.transforms import (
    BinaryConfig,
    ESConfig,
    ExpansionPlan,
    binarize_,
    expand_,
    fold_real_,
    pack_,
    plan_expansion,
)
from esbnn_core.units.start import Start, start_apart_
from esbnn_core.version import __version__

__all__ = [
    "BinaryConfig",
    "Count",
    "ESConfig",
    "ExpansionPlan",
    "InputError",
    "Start",
    "TrainOnBits",
    "TrainingError",
    "__version__",
    "binarize_",
    "bit_training_report",
    "count",
    "create_model",
    "expand_",
    "fold_real_",
    "list_models",
    "load_checkpoint",
    "model_spec",
    "pack_",
    "pack_checkpoint",
    "plan_expansion",
    "read_checkpoint",
    "save_checkpoint",
    "start_apart_",
    "train_on_bits_",
    "train_plain_",
]
