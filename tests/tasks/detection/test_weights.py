"""What our detectors start from: trunks of this project and of the originals, strictly, all or nothing."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from esbnn_core import create_model, save_checkpoint
from esbnn_core.checkpoint.official import to_official
from esbnn_core.errors import InputError
from esbnn_core.lit.callbacks import ExportWeights
from tasks.classification.module import ClassificationModule
from tasks.detection.mmdet import api as mm
from tasks.detection.models.resnet_c4 import ESBiDetResLayer, ESBiDetResNet18
from tasks.detection.weights import load_backbone_
from tests.helpers.log import Log

narrow = pytest.mark.usefixtures("narrow_trunks")


class Regions(torch.nn.Module):
    """As much of a RoI head as a backbone's file fills."""

    def __init__(self, tau: int, variant: Any) -> None:
        super().__init__()
        self.shared_head = ESBiDetResLayer(tau=tau, variant=variant)


class Detector(torch.nn.Module):
    """As much of a Faster R-CNN."""

    def __init__(self, tau: int, variant: Any = "bidet") -> None:
        super().__init__()
        self.backbone, self.roi_head = ESBiDetResNet18(tau=tau, variant=variant), Regions(tau, variant)


class SSD(torch.nn.Module):
    """As much of an SSD300."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.backbone = mm.build({"type": "ESBiDetVGG16", "tau": 1, **options})


def trunk(name: str, **options: Any) -> Any:
    torch.manual_seed(1)
    model = create_model(name, **options)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.25 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize(("tau", "official"), [(1, False), (1, True), (2, False)])
@narrow
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


@narrow
def test_the_other_width_is_refused_and_leaves_the_detector_alone(tmp_path: Path) -> None:
    save_checkpoint(trunk("bidet_resnet18"), tmp_path / "resnet.safetensors")
    detector = Detector(2)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(InputError, match="does not fit the network"):
        load_backbone_(detector, tmp_path / "resnet.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("official", [False, True])
@narrow
def test_a_vgg_fills_the_ssds_trunk(tmp_path: Path, official: bool) -> None:
    source = trunk("bidet_vgg16")
    path = tmp_path / ("vgg.pth" if official else "vgg.safetensors")
    if official:
        torch.save(to_official(source), path)
    else:
        save_checkpoint(source, path)

    detector: Any = load_backbone_(SSD(), path)
    loaded = detector.backbone.trunk.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.state_dict().items())
    with pytest.raises(InputError, match=r"gone\.pth does not exist"):
        load_backbone_(detector, "gone.pth")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tau"), [("resnet18", 2), ("vgg16", 1)])
@narrow
def test_what_a_pre_training_exports_fills_the_detector(tmp_path: Path, caplog: Log, kind: str, tau: int) -> None:
    """Two steps of the classifier over the trunk; every tensor arrives but the read-out's, which are named."""
    torch.manual_seed(0)
    images = DataLoader(TensorDataset(torch.randn(4, 3, 48, 48), torch.tensor([0, 3, 1, 2])), batch_size=2)
    module = ClassificationModule(f"es_bidet_{kind}_classifier", 4, {"tau": tau})
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=2, enable_checkpointing=False, callbacks=[ExportWeights(str(tmp_path))], **silent)
    trainer.fit(module, images)
    detector: Any = Detector(tau) if kind == "resnet18" else SSD(tau=tau)
    with caplog.at_level("INFO"):
        load_backbone_(detector, tmp_path / "weights.safetensors")
    assert "the read-out (fc.weight, fc.bias) is not loaded, everything else is" in caplog.text
    if kind == "vgg16":
        got = dict(detector.backbone.trunk.state_dict())
    else:
        layer4 = detector.roi_head.shared_head.state_dict()
        got = {**detector.backbone.state_dict(), **{f"stages.{name}": tensor for name, tensor in layer4.items()}}
    want = {name: tensor for name, tensor in module.network.state_dict().items() if not name.startswith("fc.")}
    assert got.keys() == want.keys() and all(torch.equal(tensor, want[name]) for name, tensor in got.items())


@pytest.mark.slow
def test_a_bi_real_resnet_is_a_trunk_of_variant_bireal(tmp_path: Path) -> None:
    tau = 2
    source = trunk("es_bireal_resnet18", tau=tau, num_classes=4).eval()
    save_checkpoint(source, tmp_path / "bireal.safetensors")
    detector: Any = load_backbone_(Detector(tau, "bireal"), tmp_path / "bireal.safetensors").eval()
    x = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(detector.roi_head.shared_head(*detector.backbone(x)), source.stages(source.stem(x)))
    with pytest.raises(
        InputError, match="must have the backbone's variant bidet and shortcuts True, got bireal and True:"
    ):
        load_backbone_(Detector(tau), tmp_path / "bireal.safetensors")


@pytest.mark.slow
@narrow
def test_a_trunk_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """Their tensors have the same names and shapes, so that nothing else would tell."""
    save_checkpoint(trunk("bidet_vgg16", variant="xnor"), tmp_path / "vgg.safetensors")
    with pytest.raises(InputError, match="must have the backbone's variant bidet and shortcuts True, got xnor"):
        load_backbone_(SSD(), tmp_path / "vgg.safetensors")
    load_backbone_(SSD(variant="xnor"), tmp_path / "vgg.safetensors")
    save_checkpoint(trunk("reactnet_resnet8"), tmp_path / "other.safetensors")
    for detector, kind in ((SSD(), "VGG-16"), (Detector(1), "ResNet-18")):
        with pytest.raises(InputError, match=f"must be of BiDet's {kind}, got a reactnet_resnet8"):
            load_backbone_(detector, tmp_path / "other.safetensors")


def test_a_detector_without_a_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="Linear has no backbone to load"):
        load_backbone_(torch.nn.Linear(1, 1), "some.pth")
