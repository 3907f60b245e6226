"""The study's teacher: He et al.'s network, the file that is committed, and how the taught recipe uses it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.evidence import teacher
from esbnn_core.errors import InputError
from esbnn_core.lit.recipes import read_config
from tasks.classification.objectives import Batch, TeacherObjective

ROOT = Path(__file__).parents[2]
NAMED = read_config(ROOT / "configs/proxy/train_cifar16_taught.yaml")["model"]["objective"]
FILE = ROOT / NAMED["init_args"]["teacher"]["init_args"]["path"]


@pytest.mark.parametrize("side", [16, 32])
def test_it_has_twenty_layers_and_a_quarter_of_a_million_weights(side: int) -> None:
    network = teacher.build_resnet20().eval()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 19  # and the classifier
    # 9 taps of the 3x3, 1x1 of the two shortcuts, the norms' pairs, the classifier
    taps = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 16 * 32 + 32 * 64
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)
    assert sum(p.numel() for p in network.parameters()) == taps + norms + 650
    assert network[:-3](torch.zeros(2, 3, side, side)).shape == (2, 64, side // 4, side // 4)


def test_the_recipe_is_taught_by_the_file_of_the_repository() -> None:
    assert NAMED["init_args"]["teacher"]["class_path"] == f"{teacher.__name__}.{teacher.ResNet20Teacher.__name__}"
    objective = TeacherObjective(teacher.ResNet20Teacher(str(FILE)))
    student = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    objective.prepare(student)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, loss = objective(student, Batch(images, torch.zeros(4, dtype=torch.int64), 0, 1))
    twin = teacher.build_resnet20().eval()
    twin.load_state_dict(load_file(FILE))
    soft = twin(images).softmax(1)
    assert torch.allclose(loss, -(soft * logits.log_softmax(1)).sum(1).mean(), rtol=1e-6)
    assert soft.max(1).values.min() > 0.3  # a trained one says something even of noise


def test_another_file_is_refused(tmp_path: Path) -> None:
    tensors = load_file(FILE)
    del tensors["fc.bias"]
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"does not fit the study's teacher: fc\.bias is missing"):
        teacher.ResNet20Teacher(str(tmp_path / "other.safetensors")).build()
