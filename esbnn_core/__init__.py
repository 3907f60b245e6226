"""Expanding-and-shrinking binary neural networks: layers, networks, packing, counting, checkpoints.

Importing this package needs torch alone, touches no GPU and compiles nothing.
"""

from esbnn_core.errors import InputError
from esbnn_core.models import create_model, list_models, model_spec
from esbnn_core.version import __version__

__all__ = ["InputError", "__version__", "create_model", "list_models", "model_spec"]
