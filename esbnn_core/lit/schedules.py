"""A learning-rate schedule over the whole run; the trainer sets its length."""

import math
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esbnn_core.errors import InputError, check_choice

Shape = Literal["constant", "linear", "cosine"]


class ProgressLR(LRScheduler):
    """lr = base * warm-up * shape(progress), progress = step / total steps of the run.

    The module that owns the optimizer calls `bind` with the number of steps before training.

    Args:
        optimizer: its lr is the peak.
        shape: after the warm-up: "constant", "linear" to the floor, or half a "cosine".
        warmup: share of the run, 0 <= warmup < 1, over which lr rises linearly from start * peak.
        start: lr at the first step of the warm-up, as a share of the peak.
        floor: lr at the end, as a share of the peak.
        ahead: how many steps ahead the schedule is read, within its start and end. 1 is a script that steps its
            scheduler before the epoch (ReActNet: the last epoch has lr 0), -1 one that does so an epoch late
            (BinaryViT: the first two epochs share the peak).
        prefix: timm's warmup_prefix (BNext): the warm-up comes before a shape as long as the whole run, which ends with
            the run, above the floor.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shape: Shape = "cosine",
        warmup: float = 0.0,
        start: float = 0.0,
        floor: float = 0.0,
        ahead: int = 0,
        prefix: bool = False,
    ) -> None:
        check_choice("shape of ProgressLR", shape, get_args(Shape))
        if not 0 <= warmup < 1:
            raise InputError(f"warmup must be a share of the run, at least 0 and below 1, got {warmup}")
        for name, share in (("start", start), ("floor", floor)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be a share of the peak from 0 to 1, got {share}")
        self.shape, self.warmup, self.start, self.floor = shape, warmup, start, floor
        self.ahead, self.prefix = ahead, prefix
        self.total = 1
        super().__init__(optimizer)

    def bind(self, total: int) -> None:
        """Set the number of steps and the learning rate of the first one."""
        self.total = max(1, total)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Without the length: a run that resumes for more epochs has a longer one."""
        state = super().state_dict()
        del state["total"]
        return state

    def factor(self, step: int) -> float:
        """Multiplier of the peak at a step."""
        step = max(0, step + self.ahead)
        rise = self.warmup * self.total
        if step < rise:
            return self.start + (1 - self.start) * step / rise
        progress = min(1.0, (step - rise) / (self.total if self.prefix else self.total - rise))
        if self.shape == "constant":
            return 1.0
        fall = 1 - progress if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.floor + (1 - self.floor) * fall

    def get_lr(self) -> list[Any]:
        """Learning rate of each parameter group at the current step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
