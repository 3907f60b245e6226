"""Distillation: ReActNet's distributional loss (papers.md#distributional-loss), BNext's gap weighting, teachers."""

from collections.abc import Sequence
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
        student: logits (N, K).
        teacher: logits (N, K), without gradient.
    """
    return per_sample_cross_entropy(student, teacher).mean()


def per_sample_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-sum_k softmax(teacher)_k * log_softmax(student)_k of every sample, (N,); arguments as soft_cross_entropy."""
    target = F.softmax(teacher.detach(), dim=1)
    return -(target * F.log_softmax(student, dim=1)).sum(1)


def gap_weighted_loss(student: Tensor, teachers: Sequence[Tensor], per_instance: bool = False) -> Tensor:
    """BNext's loss over its active teachers (papers.md#bnext-teachers): the worst fitted one weighs most.

        a_ij = softmax_j(CE(student_i, softmax(teacher_ij))), detached
        loss = mean_i(sum_j a_ij * L_j) / J     with J teachers

    Args:
        student: logits (N, K).
        teachers: logits (N, K) each, without gradient.
        per_instance: False is what the original's code runs: L_j is the mean over the batch, so that only the mean of
            a_ij over the batch matters (a mistyped word switches the other form off). True is what it intends: L_ij of
            the sample itself.
    """
    gaps = torch.stack([per_sample_cross_entropy(student, teacher) for teacher in teachers])
    share = gaps.detach().softmax(0)
    losses = gaps if per_instance else gaps.mean(1, keepdim=True)
    return (share * losses).sum(0).mean() / len(teachers)


def consecutive_span(epoch: int, epochs: int, count: int) -> int:
    """Which of `count` assistants is active in an epoch (from 0) of `epochs`: each has an equal span of the run.

    After the end the last one stays.
    """
    return min(count - 1, epoch * count // epochs)


class FrozenTeacher:
    """A teacher in use, kept so that no module registers it; its network is set to eval and frozen in place."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K) for x (N, C, H, W), in x's dtype; the teacher computes in its own."""
        self._network.to(x.device)
        own = next((p.dtype for p in self._network.parameters() if p.is_floating_point()), x.dtype)
        logits: Tensor = self._network(x.to(own))
        return logits.to(x.dtype)
