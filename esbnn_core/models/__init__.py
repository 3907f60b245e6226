"""Networks by name: create_model builds one, list_models lists them."""

from esbnn_core.models import (  # each registers its networks
    bidet_resnet,
    binaryvit,
    bnext,
    bnext18,
    latent_resnet,
    reactnet,
    resnet,
    vgg,
)
from esbnn_core.models.bidet_resnet import BiDetResNet
from esbnn_core.models.binaryvit import BinaryViT
from esbnn_core.models.bnext import BNext
from esbnn_core.models.bnext18 import BNext18
from esbnn_core.models.latent_resnet import LatentResNet
from esbnn_core.models.reactnet import ReActNetA
from esbnn_core.models.registry import ModelSpec, create_model, list_models, model_spec
from esbnn_core.models.resnet import BinaryResNet
from esbnn_core.models.vgg import BiDetVGG16

__all__ = [
    "BNext",
    "BNext18",
    "BiDetResNet",
    "BiDetVGG16",
    "BinaryResNet",
    "BinaryViT",
    "LatentResNet",
    "ModelSpec",
    "ReActNetA",
    "bidet_resnet",
    "binaryvit",
    "bnext",
    "bnext18",
    "create_model",
    "latent_resnet",
    "list_models",
    "model_spec",
    "reactnet",
    "resnet",
    "vgg",
]
