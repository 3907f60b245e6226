"""What our detectors start from: trunks of this project and of the originals, strictly, all or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esbnn_core import create_model, save_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.foreign import to_official
from tasks.detection import mm
from tasks.detection.resnet_c4 import ESBiDetResLayer, ESBiDetResNet18
from tasks.detection.weights import load_backbone_


class Regions(torch.nn.Module):
    """As much of a RoI head as a backbone's file fills."""

    def __init__(self, tau: int) -> None:
        super().__init__()
        self.shared_head = ESBiDetResLayer(tau=tau)


class Detector(torch.nn.Module):
    """As much of a Faster R-CNN."""

    def __init__(self, tau: int) -> None:
        super().__init__()
        self.backbone, self.roi_head = ESBiDetResNet18(tau=tau), Regions(tau)


def trunk(name: str, **options: Any) -> Any:
    torch.manual_seed(1)
    model = create_model(name, **options)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.25 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize(("tau", "official"), [(1, False), (1, True), (2, False)])
def test_a_resnet_fills_backbone_and_layer4(tmp_path: Path, tau: int, official: bool) -> None:
    options = {"tau": 2} if tau == 2 else {"num_classes": 1000}
    source = trunk("es_bidet_resnet18" if tau == 2 else "bidet_resnet18", **options)
    path = tmp_path / ("resnet.pth" if official else "resnet.safetensors")
    if official:
        torch.save(to_official(source), path)
    else:
        save_checkpoint(source, path)
    detector: Any = load_backbone_(Detector(tau), path)
    x = torch.randn(1, 3, 48, 64)
    source.eval()
    detector.eval()
    with torch.no_grad():
        features = source(x)
        assert torch.equal(detector.backbone(x)[0], features)
        assert torch.equal(detector.roi_head.shared_head(features), source.layer4(features))


def test_the_other_width_is_refused_and_leaves_the_detector_alone(tmp_path: Path) -> None:
    save_checkpoint(trunk("bidet_resnet18"), tmp_path / "resnet.safetensors")
    detector = Detector(2)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(InputError, match="does not fit the network"):
        load_backbone_(detector, tmp_path / "resnet.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("official", [False, True])
def test_a_vgg_fills_the_ssds_trunk(tmp_path: Path, official: bool) -> None:
    source = trunk("bidet_vgg16")
    path = tmp_path / ("vgg.pth" if official else "vgg.safetensors")
    if official:
        torch.save(to_official(source), path)
    else:
        save_checkpoint(source, path)

    class SSD(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = mm.build({"type": "BiDetVGG16"})

    detector: Any = load_backbone_(SSD(), path)
    loaded = detector.backbone.trunk.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.state_dict().items())
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        load_backbone_(detector, "gone.pth")


def test_a_detector_without_a_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="Linear has no backbone to load"):
        load_backbone_(torch.nn.Linear(1, 1), "some.pth")
