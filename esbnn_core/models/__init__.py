"""Networks by name: create_model is the one door, list_models the catalogue."""

from esbnn_core.models import bnext, reactnet, resnet  # they register their builders
from esbnn_core.models.bnext import BNext
from esbnn_core.models.reactnet import ReActNetA
from esbnn_core.models.registry import ModelSpec, create_model, list_models, model_spec
from esbnn_core.models.resnet import BinaryResNet

__all__ = [
    "BNext",
    "BinaryResNet",
    "ModelSpec",
    "ReActNetA",
    "bnext",
    "create_model",
    "list_models",
    "model_spec",
    "reactnet",
    "resnet",
]
