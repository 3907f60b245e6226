"""Teachers for soft labels, built when fit starts and never part of the student's state."""

from abc import ABC, abstractmethod

import torchvision
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.release import load_checkpoint


class NetworkTeacher(ABC):
    """Builds a teacher network; a subclass is named by class_path in the YAML."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A network (N, C, H, W) -> logits (N, num_classes)."""


class TorchvisionTeacher(NetworkTeacher):
    """A torchvision classification model, e.g. name=resnet34, weights=IMAGENET1K_V1 (ReActNet's teacher, spec 3.4).

    The weights are read from torchvision's cache, or fetched by it where the network allows.
    """

    def __init__(self, name: str = "resnet34", weights: str = "DEFAULT") -> None:
        self.name, self.weights = name, weights

    def build(self) -> nn.Module:
        try:
            return torchvision.models.get_model(self.name, weights=self.weights)
        except (ValueError, KeyError, OSError) as error:
            raise InputError(
                f"teacher {self.name} with weights {self.weights} cannot be built ({error}): name a torchvision model "
                f"and weights, and place the file in torchvision's cache where there is no network"
            ) from error


class CheckpointTeacher(NetworkTeacher):
    """A network from an esbnn .safetensors file, latent or packed."""

    def __init__(self, path: str) -> None:
        self.path = path

    def build(self) -> nn.Module:
        return load_checkpoint(self.path)
