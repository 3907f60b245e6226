"""What a training step minimises: labels, one teacher, BNext's consecutive teachers, or a network's own real branch.

A recipe names an objective by class_path. It is not a module: teachers that it builds when fit starts never enter the
student's state. They run in the trainer's precision context, under its autocast if there is one (BNext's script runs
only its teachers under autocast, papers.md#es-quirk-9: values differ by rounding, and so does the speed).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.errors import InputError
from esbnn_core.training.distillation import FrozenTeacher, consecutive_span, gap_weighted_loss, soft_cross_entropy
from tasks.classification.teachers import NetworkTeacher


@dataclass(frozen=True)
class Batch:
    """The input of one training step.

    Attributes:
        images: (B, C, H, W).
        labels: int64 (B,), or probabilities (B, K) of mixed images.
        epoch: counted from 0.
        epochs: of the run, None where its length is given in steps or in time.
    """

    images: Tensor
    labels: Tensor
    epoch: int
    epochs: int | None


class Objective(ABC):
    """(network, batch) -> logits (B, K) of the network that will be deployed, and the loss."""

    def prepare(self, network: nn.Module, untrained_classes: int | None = None) -> None:  # noqa: B027
        """Build what the objective needs, once, when fit starts.

        Args:
            network: the student.
            untrained_classes: build teachers with random weights and this number of classes; None builds the trained
                ones.

        Raises:
            InputError: a teacher's weights are not found; a network that the objective is not made for.
        """

    @abstractmethod
    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and loss, the loss as a scalar with a gradient."""


class LabelObjective(Objective):
    """Cross entropy with the labels, hard or mixed, smoothed by `label_smoothing`."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing must be a share, at least 0 and below 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = network(batch.images)
        return logits, F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)


class TeacherObjective(Objective):
    """The distributional loss: soft labels of one teacher (papers.md#distributional-loss).

    Args:
        teacher: gives the soft labels.
        label_share: weight of the cross entropy with the labels; 0 for ReActNet and BinaryViT, 0.1 in BinaryViT's code
            if images are mixed (papers.md#binaryvit-training).
    """

    def __init__(self, teacher: NetworkTeacher, label_share: float = 0.0) -> None:
        if not 0 <= label_share < 1:
            raise InputError(f"label_share must be a share, at least 0 and below 1, got {label_share}")
        self.teacher, self.label_share = teacher, label_share
        self._frozen: FrozenTeacher | None = None

    def prepare(self, network: nn.Module, untrained_classes: int | None = None) -> None:
        if self._frozen is None:
            self._frozen = _frozen(self.teacher, untrained_classes)

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self._frozen is not None, "prepare comes first"
        logits = network(batch.images)
        loss = soft_cross_entropy(logits, _labels_of(self._frozen, batch.images, logits))
        if self.label_share:
            hard = F.cross_entropy(logits, batch.labels)
            loss = (1 - self.label_share) * loss + self.label_share * hard
        return logits, loss


class ConsecutiveObjective(Objective):
    """BNext's consecutive distillation with gap weighting, no label term (papers.md#bnext-teachers).

    The run is cut into equal spans, one an assistant; in each the assistant and the main teacher are active.

    Args:
        assistants: in their order.
        main: the strongest teacher.
        per_instance: False as the original's code runs, True as it intends
            (esbnn_core.training.distillation.gap_weighted_loss).
    """

    def __init__(self, assistants: list[NetworkTeacher], main: NetworkTeacher, per_instance: bool = False) -> None:
        if not assistants:
            raise InputError(
                "assistants of ConsecutiveObjective must not be empty: use TeacherObjective for one teacher"
            )
        self.assistants, self.main, self.per_instance = assistants, main, per_instance
        self._frozen: Sequence[FrozenTeacher] = ()

    def prepare(self, network: nn.Module, untrained_classes: int | None = None) -> None:
        # all at once: missing weights must not stop the run in the last span
        if not self._frozen:
            self._frozen = [_frozen(teacher, untrained_classes) for teacher in [*self.assistants, self.main]]

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self._frozen, "prepare comes first"
        if batch.epochs is None:
            raise InputError(
                "the length of a run with ConsecutiveObjective must be given in epochs, got steps or time alone: set "
                "trainer.max_epochs"
            )
        logits = network(batch.images)
        span = consecutive_span(batch.epoch, batch.epochs, len(self.assistants))
        active = (self._frozen[span], self._frozen[-1])
        soft = [_labels_of(teacher, batch.images, logits) for teacher in active]
        return logits, gap_weighted_loss(logits, soft, self.per_instance)


class LatentObjective(Objective):
    """For latent_resnet*: labels for the binary and the real branch, and the real branch as the binary one's teacher.

    Differs from the paper: its wiring and losses are not published; these are ours (papers.md#latent-weights).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.labels = LabelObjective(label_smoothing)

    def prepare(self, network: nn.Module, untrained_classes: int | None = None) -> None:
        if not callable(getattr(network, "both", None)):
            raise InputError(
                f"the network of LatentObjective must have a real branch beside the binary one, got "
                f"{type(network).__name__}: choose a latent_resnet or another objective"
            )

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        binary, real = network.both(batch.images)  # type: ignore[operator]
        smoothing = self.labels.label_smoothing
        labels = sum(F.cross_entropy(x, batch.labels, label_smoothing=smoothing) for x in (binary, real))
        return binary, labels + soft_cross_entropy(binary, real)


def _frozen(teacher: NetworkTeacher, untrained_classes: int | None) -> FrozenTeacher:
    if untrained_classes is None:
        return FrozenTeacher(teacher.build())
    network = teacher.build_untrained(untrained_classes)
    rank_zero_info(f"untrained_teachers: a random {type(network).__name__} is the teacher, the result means nothing")
    return FrozenTeacher(network)


def _labels_of(teacher: FrozenTeacher, images: Tensor, student: Tensor) -> Tensor:
    logits = teacher(images)
    if logits.shape != student.shape:
        raise InputError(
            f"logits of the teacher must have the shape of the network's, {tuple(student.shape)}, got "
            f"{tuple(logits.shape)}: choose a teacher of this dataset"
        )
    return logits
