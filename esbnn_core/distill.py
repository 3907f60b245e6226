"""Distillation: the distributional loss of ReActNet and what a teacher is (spec 3.4)."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Teacher(Protocol):
    """Builds the teacher network when training starts; its weights never enter the student's state."""

    def build(self) -> nn.Module:
        """A network (N, C, H, W) -> logits (N, num_classes)."""
        ...


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of -sum_k softmax(teacher)_k * log_softmax(student)_k; temperature 1, no label term.

    Args:
        student, teacher: logits (N, K). The teacher gets no gradient.
    """
    target = F.softmax(teacher.detach(), dim=1)
    return -(target * F.log_softmax(student, dim=1)).sum(1).mean()


class FrozenTeacher:
    """A teacher in use, held so that no module registers it; the network is set to eval and frozen in place."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K) for x (N, C, H, W)."""
        self._network.to(x.device)
        logits: Tensor = self._network(x)
        return logits
