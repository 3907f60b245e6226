"""Whole networks against outputs of the originals (float64, closed-form weights, relative 1e-9)."""

import pytest
import torch

from esbnn_core import create_model
from tests.core.golden import RECORDS, close, closed_form, fill


def test_reactnet_resnet18_and_its_first_stage() -> None:
    model = fill(create_model("reactnet_resnet18"))
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        close(model.stages.layer1(model.stem(x)), RECORDS["reactnet_r18/64/layer1"])
        close(model(x), RECORDS["reactnet_r18/64"])


def test_recu_resnet20() -> None:
    model = fill(create_model("recu_resnet20"))
    x = closed_form("input", 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        close(model(x), RECORDS["recu_resnet20/2x32"])


@pytest.mark.parametrize("name", ["reactnet_a", "rep_reactnet_a"])
def test_reactnet_a_and_its_first_blocks(name: str) -> None:
    model = fill(create_model(name))
    record = "reactnet_a(adambnn names)/64" if name == "reactnet_a" else "rep_reactnet_a/64"
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        close(model(x), RECORDS[record])
        x = model.stem(x)
        for i, block in enumerate([None, *model.blocks][:5]):
            x = x if block is None else block(x)
            if f"{record}/feature.{i}" in RECORDS:
                close(x, RECORDS[f"{record}/feature.{i}"])


@pytest.mark.parametrize(
    ("name", "record", "temperature"),
    [
        ("bnext_tiny", "bnext_t/sign/64", 1e-8),
        ("es_bnext_tiny", "es_bnext_t/sign/64", 1e-8),
        ("es_bnext_tiny", "es_bnext_t/T1/64", 1.0),
        ("es_bnext_tiny", "es_bnext_t/T0.5/64", 0.5),
        ("rep_bnext_tiny", "bnext_t_rep(non-ops)/sign/64", 1e-8),
    ],
)
def test_bnext_and_its_blocks(name: str, record: str, temperature: float) -> None:
    model = fill(create_model(name), temperature)
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        close(model(x), RECORDS[record])
        x = model.stem(x)
        for i, block in enumerate([None, *model.blocks]):
            x = x if block is None else block(x)
            if f"{record}/feature.{i}" in RECORDS:
                close(x, RECORDS[f"{record}/feature.{i}"])


def test_the_comparison_can_fail() -> None:
    model = fill(create_model("reactnet_resnet18"))
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        model.stages.layer1[0].norm.bias.add_(1e-6)
        with pytest.raises(AssertionError, match="differs by"):
            close(model.stages.layer1(model.stem(x)), RECORDS["reactnet_r18/64/layer1"])
