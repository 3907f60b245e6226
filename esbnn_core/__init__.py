"""Expanding-and-shrinking binary neural networks: layers, networks, packing, counting, checkpoints.

Importing this package needs torch alone, touches no GPU and compiles nothing.
"""

from esbnn_core.bit_training import TrainOnBits, bit_training_report, train_on_bits_, train_plain_
from esbnn_core.checkpoint import read_checkpoint, save_checkpoint
from esbnn_core.counting import Count, count
from esbnn_core.errors import InputError, TrainingError
from esbnn_core.expansion import expand_, plan_expansion
from esbnn_core.models import create_model, list_models, model_spec
from esbnn_core.release import load_checkpoint, pack_checkpoint
from esbnn_core.surgery import BinaryConfig, binarize_, pack_
from esbnn_core.version import __version__
from esbnn_core.width_flow import ESConfig, ExpansionPlan

__all__ = [
    "BinaryConfig",
    "Count",
    "ESConfig",
    "ExpansionPlan",
    "InputError",
    "TrainOnBits",
    "TrainingError",
    "__version__",
    "binarize_",
    "bit_training_report",
    "count",
    "create_model",
    "expand_",
    "list_models",
    "load_checkpoint",
    "model_spec",
    "pack_",
    "pack_checkpoint",
    "plan_expansion",
    "read_checkpoint",
    "save_checkpoint",
    "train_on_bits_",
    "train_plain_",
]
