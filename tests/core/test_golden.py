"""Whole networks against outputs of the originals (float64, closed-form weights, relative 1e-9)."""

import pytest
import torch

from esbnn_core import create_model
from tests.core.golden import RECORDS, close, closed_form, fill


def test_reactnet_resnet18_and_its_first_stage() -> None:
    model = fill(create_model("reactnet_resnet18"), "reactnet")
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        close(model.stages.layer1(model.stem(x)), RECORDS["reactnet_r18/64/layer1"])
        close(model(x), RECORDS["reactnet_r18/64"])


def test_recu_resnet20() -> None:
    model = fill(create_model("recu_resnet20"), "recu")
    x = closed_form("input", 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        close(model(x), RECORDS["recu_resnet20/2x32"])


def test_the_comparison_can_fail() -> None:
    model = fill(create_model("reactnet_resnet18"), "reactnet")
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        model.stages.layer1[0].norm.bias.add_(1e-6)
        with pytest.raises(AssertionError, match="differs by"):
            close(model.stages.layer1(model.stem(x)), RECORDS["reactnet_r18/64/layer1"])
