"""Objectives against plain formulas, mixed labels, spans of assistants, and what they refuse."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core import create_model
from esbnn_core.errors import InputError
from tasks.classification.data import ClassificationDataModule
from tasks.classification.objectives import (
    Batch,
    ConsecutiveObjective,
    LabelObjective,
    LatentObjective,
    Objective,
    TeacherObjective,
)
from tasks.classification.teachers import NetworkTeacher
from tests.helpers.classification import make_module

MakeData = Callable[..., ClassificationDataModule]
MakeTrainer = Callable[..., L.Trainer]
CLASSES = 6


class Linear(nn.Module):
    """Logits that depend on the mean colour alone: a network small enough to compute by hand."""

    def __init__(self, seed: int, classes: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 3, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.mean((2, 3)), self.weight)


class LinearTeacher(NetworkTeacher):
    def __init__(self, seed: int, classes: int = CLASSES) -> None:
        self.seed, self.classes, self.built = seed, classes, 0

    def build(self) -> nn.Module:
        self.built += 1
        return Linear(self.seed, self.classes)

    def build_untrained(self, num_classes: int) -> nn.Module:
        return Linear(self.seed + 100, num_classes)


def batch(count: int, mixed: bool = False, epoch: int = 0, epochs: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    if mixed:
        other = torch.randint(0, CLASSES, (count,), generator=generator)
        labels = 0.7 * F.one_hot(labels, CLASSES).double() + 0.3 * F.one_hot(other, CLASSES).double()
    return Batch(images, labels, epoch, epochs)


def soft(student: Tensor, target: Tensor) -> Tensor:
    return -(target * student.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_hard_mixed_and_smoothed(count: int, mixed: bool, smoothing: float) -> None:
    network, b = Linear(0), batch(count, mixed)
    logits, loss = LabelObjective(smoothing)(network, b)
    target = b.labels if mixed else F.one_hot(b.labels, CLASSES).double()
    assert torch.equal(logits, network(b.images))
    assert loss.item() == pytest.approx(soft(logits, (1 - smoothing) * target + smoothing / CLASSES).item(), rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_teacher_alone_or_with_a_share_of_labels(share: float, mixed: bool) -> None:
    network, b = Linear(0), batch(5, mixed)
    objective = TeacherObjective(LinearTeacher(1), share)
    objective.prepare(network)
    logits, loss = objective(network, b)
    target = b.labels if mixed else F.one_hot(b.labels, CLASSES).double()
    want = (1 - share) * soft(logits, Linear(1)(b.images).softmax(1)) + share * soft(logits, target)
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)


@pytest.mark.parametrize(("epochs", "spans"), [(6, [0, 0, 1, 1, 2, 2]), (4, [0, 0, 1, 2])])
@pytest.mark.parametrize("per_instance", [False, True])
def test_each_span_has_its_assistant_and_the_main_teacher(epochs: int, spans: list[int], per_instance: bool) -> None:
    network = Linear(0)
    objective = ConsecutiveObjective([LinearTeacher(seed) for seed in (1, 2, 3)], LinearTeacher(4), per_instance)
    objective.prepare(network)
    for epoch, span in enumerate(spans):
        b = batch(5, epoch=epoch, epochs=epochs)
        logits, loss = objective(network, b)
        targets = [Linear(seed)(b.images).softmax(1) for seed in (1 + span, 4)]
        gaps = torch.stack([-(t * logits.log_softmax(1)).sum(1) for t in targets]).detach()
        share = gaps.softmax(0)
        each = gaps if per_instance else gaps.mean(1, keepdim=True)
        assert loss.item() == pytest.approx(((share * each).sum(0).mean() / 2).item(), rel=1e-12), epoch
    with pytest.raises(InputError, match="must not be empty: use TeacherObjective"):
        ConsecutiveObjective([], LinearTeacher(4))


def test_all_teachers_are_built_before_the_first_step_and_once() -> None:
    teachers = [LinearTeacher(seed) for seed in (1, 2, 3)]
    objective = ConsecutiveObjective(teachers[:2], teachers[2])  # type: ignore[arg-type]
    assert [t.built for t in teachers] == [0, 0, 0]
    objective.prepare(Linear(0))
    objective.prepare(Linear(0))
    assert [t.built for t in teachers] == [1, 1, 1]
    objective(Linear(0), batch(3))
    assert [t.built for t in teachers] == [1, 1, 1]


def test_untrained_teachers_have_the_students_classes() -> None:
    teacher = LinearTeacher(1)
    objective = TeacherObjective(teacher)
    objective.prepare(Linear(0), untrained_classes=CLASSES)
    b = batch(3)
    logits, loss = objective(Linear(0), b)
    assert teacher.built == 0 and loss.item() == pytest.approx(soft(logits, Linear(101)(b.images).softmax(1)).item())


@pytest.mark.parametrize(
    "objective",
    [
        TeacherObjective(LinearTeacher(1, 9)),
        ConsecutiveObjective([LinearTeacher(1), LinearTeacher(2, 9)], LinearTeacher(3)),
        ConsecutiveObjective([LinearTeacher(1)], LinearTeacher(3, 9)),
    ],
)
def test_another_number_of_classes_is_a_sentence(objective: Objective) -> None:
    objective.prepare(Linear(0))
    with pytest.raises(InputError, match=r"the network\'s, \(3, 6\), got \(3, 9\)"):
        objective(Linear(0), batch(3, epoch=1, epochs=2))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LabelObjective(1.0), "label_smoothing must be a share, .*, got 1.0"),
        (lambda: TeacherObjective(LinearTeacher(0), -0.1), "label_share must be a share, .*, got -0.1"),
        (lambda: TeacherObjective(LinearTeacher(0), 1.0), "label_share must be a share, .*, got 1.0"),
    ],
)
def test_shares_out_of_their_range(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_real_branch_teaches_and_is_not_taught_by_the_binary_one(smoothing: float) -> None:
    torch.manual_seed(0)
    network = create_model("latent_resnet18", num_classes=CLASSES).double()
    objective = LatentObjective(smoothing)
    objective.prepare(network)
    generator = torch.Generator().manual_seed(2)
    b = Batch(torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 5, 3]), 0, 1)
    logits, loss = objective(network, b)
    binary, real = network.both(b.images)
    torch.testing.assert_close(logits, binary)
    target = (1 - smoothing) * F.one_hot(b.labels, CLASSES).double() + smoothing / CLASSES
    parts = [soft(binary, target), soft(real, target), soft(binary, real.detach().softmax(1))]
    assert loss.item() == pytest.approx(sum(parts).item(), rel=1e-9)
    # what the real branch alone owns hears its labels and nothing else
    own = next(network.real.parameters())
    (got,) = torch.autograd.grad(loss, own)
    (want,) = torch.autograd.grad(parts[1], own)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
    with pytest.raises(InputError, match="got BinaryResNet: choose a latent_resnet"):
        LatentObjective().prepare(create_model("reactnet_resnet8"))


def test_teachers_stay_out_of_state_and_optimizer(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    class Grey(LinearTeacher):
        def build(self) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    module = make_module("reactnet_resnet8", objective=ConsecutiveObjective([Grey(0)], Grey(1)))
    names, count = set(module.state_dict()), len(list(module.parameters()))
    trainer = make_trainer(max_epochs=1, limit_train_batches=2)
    trainer.fit(module, make_data())
    assert set(module.state_dict()) == names and len(list(module.parameters())) == count
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.network.parameters()}


def test_top1_of_mixed_labels_counts_the_larger_share(make_data: MakeData, make_trainer: MakeTrainer) -> None:
    module, data = make_module("reactnet_resnet8"), make_data()
    logged: list[dict[str, float]] = []
    module.log_dict = lambda values, **_: logged.append({k: float(v.detach()) for k, v in values.items()})  # type: ignore[method-assign]
    seen: list[Tensor] = []

    class Mix(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, loaded: list[Tensor], index: int) -> None:
            hard = F.one_hot(loaded[1], 10).float()
            loaded[1] = 0.6 * hard + 0.4 * hard.roll(1, 0)
            seen.append(loaded[1])

    captured: list[Tensor] = []
    inner = module.objective

    class Capture(Objective):
        def __call__(self, network: nn.Module, b: Batch) -> tuple[Tensor, Tensor]:
            logits, loss = inner(network, b)
            captured.append(logits.detach())
            return logits, loss

    module.objective = Capture()
    trainer = make_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    trainer.callbacks.append(Mix())
    trainer.fit(module, data)
    tops = [entry["train_top1"] for entry in logged if "train_top1" in entry]
    want = [100 * (x.argmax(1) == y.argmax(1)).float().mean().item() for x, y in zip(captured, seen, strict=True)]
    assert len(tops) == 2 and tops == pytest.approx(want)
