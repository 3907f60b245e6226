"""The distributional loss against torch's own soft cross entropy, its closed-form gradient, and the frozen teacher."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esbnn_core.training.distillation import FrozenTeacher, consecutive_span, gap_weighted_loss, soft_cross_entropy

SIZES = [(1, 2), (5, 10), (32, 1000)]


def logits(shape: tuple[int, int], seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("shape", SIZES)
def test_the_loss_is_soft_cross_entropy(shape: tuple[int, int]) -> None:
    student, teacher = logits(shape, 0), logits(shape, 1)
    want = F.cross_entropy(student, teacher.detach().softmax(1))
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(want.item(), rel=1e-12)
    # and not its mirror image
    assert soft_cross_entropy(teacher, student).item() != pytest.approx(want.item(), rel=1e-3)


@pytest.mark.parametrize("shape", SIZES)
def test_the_gradient_goes_to_the_student_alone(shape: tuple[int, int]) -> None:
    student, teacher = logits(shape, 2), logits(shape, 3)
    soft_cross_entropy(student, teacher).backward()
    want = (student.detach().softmax(1) - teacher.detach().softmax(1)) / shape[0]
    assert teacher.grad is None and student.grad is not None
    torch.testing.assert_close(student.grad, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", SIZES)
def test_equal_logits_give_the_entropy(shape: tuple[int, int]) -> None:
    x = logits(shape, 4).detach()
    entropy = torch.distributions.Categorical(logits=x).entropy().mean()
    assert soft_cross_entropy(x, x).item() == pytest.approx(entropy.item(), rel=1e-12)
    assert soft_cross_entropy(x + 5, x - 7).item() == pytest.approx(entropy.item(), rel=1e-12)
    assert soft_cross_entropy(logits(shape, 5), x) > entropy
    flat = torch.zeros(shape, dtype=torch.float64)
    assert soft_cross_entropy(flat, flat).item() == pytest.approx(math.log(shape[1]), rel=1e-12)


def gap_weighted_by_hand(student: Tensor, teachers: list[Tensor], per_instance: bool) -> float:
    """Spec 4.5 in plain loops over numpy-like numbers."""
    count, rows = len(teachers), student.detach().tolist()

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        parts = [math.exp(value - top) for value in row]
        return [part / sum(parts) for part in parts]

    def entropy(i: int, j: int) -> float:
        target, given = softmax(teachers[j].tolist()[i]), softmax(rows[i])
        return -sum(t * math.log(g) for t, g in zip(target, given, strict=True))

    gaps = [[entropy(i, j) for j in range(count)] for i in range(len(rows))]
    shares = [softmax(row) for row in gaps]
    means = [sum(row[j] for row in gaps) / len(rows) for j in range(count)]
    losses = gaps if per_instance else [means] * len(rows)
    total = sum(a * loss for share, row in zip(shares, losses, strict=True) for a, loss in zip(share, row, strict=True))
    return total / len(rows) / count


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (16, 40)])
@pytest.mark.parametrize("per_instance", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_gap_weighting_is_the_formula(shape: tuple[int, int], per_instance: bool, count: int) -> None:
    student, teachers = logits(shape, 6), [logits(shape, 7 + j).detach() for j in range(count)]
    got = gap_weighted_loss(student, teachers, per_instance)
    assert got.item() == pytest.approx(gap_weighted_by_hand(student, teachers, per_instance), rel=1e-12)
    other = gap_weighted_loss(student, teachers, not per_instance).item()
    assert (got.item() == pytest.approx(other, rel=1e-9)) is (shape[0] == 1)  # one sample is its own batch


@pytest.mark.parametrize("per_instance", [False, True])
def test_the_gap_weights_are_constants_of_the_step(per_instance: bool) -> None:
    student, teachers = logits((6, 5), 9), [logits((6, 5), 10 + j) for j in range(2)]
    gap_weighted_loss(student, teachers, per_instance).backward()
    assert student.grad is not None and all(teacher.grad is None for teacher in teachers)
    # a_ij fixed: each teacher's gradient (softmax(s) - softmax(t)) / N, weighted by a_ij or by its mean over the batch
    probabilities = student.detach().softmax(1)
    soft = [teacher.detach().softmax(1) for teacher in teachers]
    gaps = torch.stack([-(target * probabilities.log()).sum(1) for target in soft])
    share = gaps.softmax(0)
    if not per_instance:
        share = share.mean(1, keepdim=True).expand_as(share)
    want = sum(a[:, None] * (probabilities - target) for a, target in zip(share, soft, strict=True)) / 6 / 2
    torch.testing.assert_close(student.grad, want, rtol=1e-10, atol=1e-14)


def test_the_teacher_fitted_worst_counts_most() -> None:
    student = torch.tensor([[4.0, 0.0, 0.0]])
    near, far = torch.tensor([[4.0, 0.1, 0.0]]), torch.tensor([[0.0, 6.0, 0.0]])
    even = (soft_cross_entropy(student, near) + soft_cross_entropy(student, far)) / 4
    assert gap_weighted_loss(student, [near, far]) > even * 1.3
    assert gap_weighted_loss(student, [near, near]) == pytest.approx(soft_cross_entropy(student, near).item() / 2)


@pytest.mark.parametrize(("epochs", "count"), [(512, 1), (512, 2), (512, 3), (10, 3), (1, 3)])
def test_the_spans_are_equal_and_in_order(epochs: int, count: int) -> None:
    spans = [consecutive_span(epoch, epochs, count) for epoch in range(epochs)]
    assert spans == sorted(spans) and spans[0] == 0 and set(spans) <= set(range(count))
    lengths = [spans.count(p) for p in range(count)]
    assert max(lengths) - min(lengths) <= 1
    assert consecutive_span(epochs + 3, epochs, count) == count - 1
    if (epochs, count) == (512, 2):
        assert (spans[255], spans[256]) == (0, 1)


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = soft_cross_entropy(student, torch.tensor([[-1e4, 1e4, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and student.grad is not None and student.grad.isfinite().all()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 5))


@pytest.mark.parametrize("count", [1, 4])
def test_the_teacher_is_frozen(count: int) -> None:
    model = network().train()
    x = torch.randn(count, 3, 8, 8, requires_grad=True)
    teacher = FrozenTeacher(model)
    statistics = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first, second = teacher(x), teacher(x)
    # evaluation mode: no dropout, no batch statistics, nothing written
    assert torch.equal(first, second) and torch.equal(first, model(x).detach()) and not first.requires_grad
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(statistics[key], tensor) for key, tensor in model.state_dict().items())


def test_a_module_that_holds_the_teacher_does_not_register_it() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(3, 5)
            self.teacher = FrozenTeacher(network())

    student = Student().train().double()
    assert set(student.state_dict()) == {"network.weight", "network.bias"}
    assert len(list(student.parameters())) == 2 and len(list(student.modules())) == 2
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(student.teacher(x), FrozenTeacher(network())(x))  # train() and double() did not reach it
    soft_cross_entropy(student.network(x[:, :, 0, 0].double()), student.teacher(x).double()).backward()
    assert student.network.weight.grad is not None and student.network.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_teacher_keeps_its_dtype_and_answers_in_the_students(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(4, 3, 2, 2)
    want = model(x.to(dtype).float()).to(dtype)
    got = FrozenTeacher(model)(x.to(dtype))
    assert got.dtype == dtype and torch.equal(got, want) and model[1].weight.dtype == torch.float32
