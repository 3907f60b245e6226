"""The ResNet-18 in mmdet: golden records through its modules, the cut at layer4, the frozen stem, costs under ES."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from esbnn_core import InputError, count, create_model
from esbnn_core.layers import BinaryConv2d
from esbnn_core.models.bidet_resnet import PlainBlock
from esbnn_core.units.conv import BinaryUnit
from tasks.detection.mmdet.api import build
from tasks.detection.models.resnet_c4 import load_trunk_
from tasks.detection.weights import load_backbone_
from tests.helpers.detection.faster_rcnn import config, made
from tests.helpers.golden import RECORDS, close, closed_form, fill


def test_golden_records_through_the_detectors_modules() -> None:
    trunk = fill(create_model("bidet_resnet18", num_classes=5))
    detector = load_trunk_(made("bidet").double().eval(), trunk)
    with torch.no_grad():
        (features,) = detector.backbone(closed_form("det", 3 * 72 * 88).view(1, 3, 72, 88))
        close(features, RECORDS["bidet_r18/72x88/layer3"])
        regions = closed_form("roi", 2 * 256 * 49).view(2, 256, 7, 7)
        close(detector.roi_head.shared_head(regions), RECORDS["bidet_r18/layer4(7x7 roi)"])


@pytest.mark.usefixtures("narrow_trunks")
@pytest.mark.parametrize(("tau", "groups"), [(2, 1), (2, 2)])
def test_an_expanded_trunk_is_cut_in_two(tau: int, groups: int) -> None:
    torch.manual_seed(0)
    trunk = create_model("es_bidet_resnet18", tau=tau, groups=groups).eval()
    detector = nn.Module()
    detector.backbone = build({"type": "ESBiDetResNet18", "tau": tau, "groups": groups})
    detector.roi_head = nn.Module()
    detector.roi_head.shared_head = build({"type": "ESBiDetResLayer", "tau": tau, "groups": groups})
    load_trunk_(detector, trunk).eval()
    x = torch.randn(1, 3, 70, 50)
    with torch.no_grad():
        (features,) = detector.backbone(x)
        assert torch.equal(features, trunk(x)) and features.shape == (1, tau * groups * 64, 5, 4)
        assert torch.equal(detector.roi_head.shared_head(features), trunk.layer4(features))
    own = sum(p.numel() for part in (detector.backbone, detector.roi_head) for p in part.parameters())
    assert own == sum(p.numel() for p in trunk.parameters())


@pytest.mark.usefixtures("narrow_trunks")
def test_a_trunk_that_does_not_fit_is_refused_and_nothing_changes() -> None:
    detector = made("es_bidet")
    before = copy.deepcopy(detector.state_dict())
    with pytest.raises(InputError, match="checkpoint the trunk does not fit the network: stages"):
        load_trunk_(detector, create_model("bidet_resnet18"))
    # the backbone's part fits, layer4's does not
    trunk = create_model("es_bidet_resnet18")
    trunk.stages.layer4 = nn.Identity()
    with pytest.raises(InputError, match=r"checkpoint the trunk's layer4 does not fit the network: layer4\.0"):
        load_trunk_(detector, trunk)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    with pytest.raises(
        InputError, match="must be built on a BiDet ResNet-18 and its layer4, got a ResNet and a ResLayer"
    ):
        load_trunk_(made("real"), trunk)


@pytest.mark.parametrize("counts", [True, False])
def test_the_real_valued_twin_starts_from_torchvisions_file(tmp_path: Path, counts: bool) -> None:
    """Its layer4 is the shared head; older files have no num_batches_tracked."""
    torch.manual_seed(0)
    whole = torchvision.models.resnet18().state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save({key: value for key, value in whole.items() if counts or "tracked" not in key}, path)
    detector = load_backbone_(made("real"), path)
    for key, value in detector.backbone.state_dict().items():
        assert torch.equal(value, whole[key])
    regions = detector.roi_head.shared_head.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in regions.items()) and len(regions) == 30
    torch.save({key: value for key, value in whole.items() if key != "layer4.1.bn2.bias"}, path)
    with pytest.raises(InputError, match=r"resnet18\.pth does not fit the network: layer4\.1\.bn2\.bias is missing"):
        load_backbone_(made("real"), path)


@pytest.mark.usefixtures("narrow_trunks")
@pytest.mark.parametrize("frozen", [True, False])
def test_the_stem_is_frozen_by_option(frozen: bool) -> None:
    backbone = build({"type": "ESBiDetResNet18", "frozen_stem": frozen})
    assert backbone.stem.norm.training is not frozen and backbone.stages.training
    backbone.train()
    assert backbone.stem.norm.training is not frozen and backbone.stages.training
    before = copy.deepcopy(backbone.state_dict())
    (y,) = backbone(torch.randn(2, 3, 64, 48))
    y.square().mean().backward()
    learns = {key for key, p in backbone.named_parameters() if p.grad is not None}
    assert any(key.startswith("stages.") for key in learns)
    assert any(key.startswith("stem.") for key in learns) is not frozen
    moved = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert ("stem.norm.running_mean" in moved) is not frozen and "stages.layer1.0.norm.running_mean" in moved
    assert not any(module.training for module in backbone.eval().modules())


def test_variants_without_extra_shortcuts_have_resnets_own() -> None:
    plain = build({"type": "BiDetResNet18", "shortcuts": False})
    blocks = [module for module in plain.modules() if isinstance(module, PlainBlock)]
    assert len(blocks) == 6 and all(u.shortcut is None for u in plain.modules() if isinstance(u, BinaryUnit))
    block = blocks[2].eval()  # the first of layer2: stride 2
    x = torch.randn(1, 64, 9, 7)
    with torch.no_grad():
        first, second = block.units
        assert torch.equal(block(x), second(first(x)) + block.shortcut(x))
    assert block.shortcut(x).shape == (1, 128, 5, 4)
    regions = made("bidet", backbone__shortcuts=False).roi_head.shared_head
    assert sum(isinstance(module, PlainBlock) for module in regions.modules()) == 2
    # the same weights and operations as with them
    counts = [count(create_model("bidet_resnet18", shortcuts=s), (3, 96, 80)) for s in (True, False)]
    assert counts[0].bops == counts[1].bops and counts[0].flops == counts[1].flops


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pad", "slope"), [("bidet", -1, 0.5), ("es_bidet", -1, 0.5), ("bireal", 0, 0.5), ("xnor", 0, 1.0)]
)
def test_variants_binarise_in_their_way(name: str, pad: int, slope: float) -> None:
    """Borders, the gradient through the scale, and the sign's slope at 0.75: 0.5 by poly2, 1 by the plain clip."""
    model = build(config(name))
    layers = [m for m in model.modules() if isinstance(m, BinaryConv2d)]
    # 12 of the trunk, 4 of layer4, the RPN's
    assert len(layers) == 17
    assert {layer.pad_value for layer in layers} == {pad}
    for layer in layers:
        x = torch.full((1, layer.in_channels, 3, 3), 0.75, requires_grad=True)
        layer.sign(x).sum().backward()
        assert x.grad.unique().tolist() == [slope]
        assert layer.output_scale().requires_grad is name.endswith("bidet")


def test_expansion_keeps_the_detectors_operations() -> None:
    """Weights of every convolution and linear layer, real and binary apart, in their order.

    Source: papers.md#equal-cost, #es-bidet.
    """
    sizes = []
    for name in ("bidet", "es_bidet"):
        layers = [m for m in build(config(name)).modules() if isinstance(m, BinaryConv2d | nn.Conv2d | nn.Linear)]
        sizes.append([(type(m), m.weight.numel()) for m in layers])
    assert sizes[0] == sizes[1] and len(sizes[0]) == 17 + 4 + 2 + 2
