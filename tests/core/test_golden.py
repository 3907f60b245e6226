"""Whole networks against outputs of the originals (float64, closed-form weights, relative 1e-9)."""

import pytest
import torch
from torch import Tensor, nn

from esbnn_core import create_model
from esbnn_core.layers.quantizers import Temperature
from tests.helpers.golden import RECORDS, close, closed_form, fill


def filled(name: str) -> nn.Module:
    """The network with the closed-form weights; to draw others before takes longer."""
    with torch.device("meta"):
        model = create_model(name)
    return fill(model.to_empty(device="cpu"))


def test_reactnet_resnet18_and_its_first_stage() -> None:
    model = filled("reactnet_resnet18")
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        close(model.stages.layer1(model.stem(x)), RECORDS["reactnet_r18/64/layer1"])
        close(model(x), RECORDS["reactnet_r18/64"])


def test_recu_resnet20() -> None:
    model = filled("recu_resnet20")
    x = closed_form("input", 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    with torch.no_grad():
        close(model(x), RECORDS["recu_resnet20/2x32"])


def check_blocks(model: nn.Module, record: str) -> None:
    """The logits against the record, and in the same forward the stem and every block that has one."""
    stages: list[Tensor] = []
    parts = [model.stem, *model.blocks]
    hooks = [part.register_forward_hook(lambda *found: stages.append(found[2])) for part in parts]
    with torch.no_grad():
        close(model(closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)), RECORDS[record])
    for hook in hooks:
        hook.remove()
    known = {f"{record}/feature.{i}": x for i, x in enumerate(stages)}
    assert len(stages) == len(parts)
    for name in known.keys() & RECORDS.keys():
        close(known[name], RECORDS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reactnet_a", "rep_reactnet_a"])
def test_reactnet_a_and_its_first_blocks(name: str) -> None:
    check_blocks(filled(name), "reactnet_a(adambnn names)/64" if name == "reactnet_a" else "rep_reactnet_a/64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("bnext_tiny", {"bnext_t/sign/64": 1e-8}),
        ("es_bnext_tiny", {"es_bnext_t/sign/64": 1e-8, "es_bnext_t/T1/64": 1.0, "es_bnext_t/T0.5/64": 0.5}),
        ("rep_bnext_tiny", {"bnext_t_rep(non-ops)/sign/64": 1e-8}),
    ],
)
def test_bnext_and_its_blocks(name: str, records: dict[str, float]) -> None:
    model = filled(name)
    for record, temperature in records.items():
        for module in model.modules():
            if isinstance(module, Temperature):
                module.temperature.fill_(temperature)
        check_blocks(model, record)


@pytest.mark.slow
def test_binaryvit_its_first_layers_and_first_merge() -> None:
    model = filled("binaryvit")
    x = closed_form("input", 3 * 224 * 224).view(1, 3, 224, 224)
    found: dict[str, Tensor] = {}
    parts = {"embeddings": model.stem, **{f"layer.{i}": model.layers[i] for i in range(3)}}
    parts["patch_embed1"] = model.merges["3"]
    for name, part in parts.items():
        part.register_forward_hook(lambda *made, name=name: found.update({name: made[2]}))
    with torch.no_grad():
        close(model(x), RECORDS["binaryvit/224/logits"])
    assert found.keys() == parts.keys()
    for name, value in found.items():
        close(value, RECORDS[f"binaryvit/224/{name}"])


def test_bidet_resnet18_and_its_layer4() -> None:
    model = filled("bidet_resnet18")
    with torch.no_grad():
        close(model(closed_form("det", 3 * 72 * 88).view(1, 3, 72, 88)), RECORDS["bidet_r18/72x88/layer3"])
        close(model.layer4(closed_form("roi", 2 * 256 * 49).view(2, 256, 7, 7)), RECORDS["bidet_r18/layer4(7x7 roi)"])


@pytest.mark.slow
def test_bidet_vgg16_under_the_detectors_norm() -> None:
    model = filled("bidet_vgg16")
    with torch.no_grad():
        source, last = model(closed_form("input", 3 * 300 * 300).view(1, 3, 300, 300))
        close(last, RECORDS["bidet_ssd300/source1"])
        # the detector's L2Norm, no part of the trunk
        weight = 0.5 + 0.3 * closed_form("L2Norm.weight", 512)
        source = source / (source.norm(dim=1, keepdim=True) + 1e-10) * weight.view(1, -1, 1, 1)
        close(source, RECORDS["bidet_ssd300/source0"])


def test_the_comparison_can_fail() -> None:
    model = filled("reactnet_resnet18")
    x = closed_form("input", 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        model.stages.layer1[0].norm.bias.add_(1e-6)
        with pytest.raises(AssertionError, match="differs by"):
            close(model.stages.layer1(model.stem(x)), RECORDS["reactnet_r18/64/layer1"])
