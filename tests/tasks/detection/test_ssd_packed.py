"""SSD300 packed: the same boxes, a file that holds no latent weight, and every variant's forward."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esbnn_core import InputError, load_checkpoint, pack_, save_checkpoint
from esbnn_core.layers.base import BinaryLayer, binary_layers
from esbnn_core.packed.units import PackedUnit
from tasks.detection.models.bottleneck import Bottleneck
from tests.helpers.detection.ssd300 import detector, images, sample, warmed

pytestmark = pytest.mark.usefixtures("narrow_trunks")


@torch.no_grad()
def predictions(model: nn.Module, x: torch.Tensor) -> list[Any]:
    samples = [sample([], []) for _ in x]
    return [each.pred_instances for each in model.predict(x, samples, rescale=False)]


@pytest.mark.slow
def test_packed_detectors_predict_the_same_boxes(tmp_path: Path) -> None:
    x = images(2)
    latent = warmed(detector("es_bidet", tau=2, groups=2), x)
    x = x[1:]
    want = predictions(latent, x)
    packed = pack_(copy.deepcopy(latent))
    kinds = {type(module) for module in packed.modules()}
    assert PackedUnit in kinds and not any(issubclass(kind, (BinaryLayer, Bottleneck)) for kind in kinds)
    for got, other in zip(predictions(packed, x), want, strict=True):
        assert len(other.labels) > 50 and len(other.labels.unique()) >= 3
        assert torch.equal(got.labels, other.labels)
        torch.testing.assert_close(got.bboxes, other.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(got.scores, other.scores, rtol=0, atol=1e-4)
    save_checkpoint(packed, tmp_path / "packed.safetensors")
    again = load_checkpoint(tmp_path / "packed.safetensors", detector("es_bidet", tau=2, groups=2))
    for got, other in zip(predictions(again, x), want, strict=True):
        assert torch.equal(got.labels, other.labels)
    # the binary weights alone are 1/32 of their latent ones; the real heads stay
    latent_bits = sum(layer.weight.numel() for _, layer in binary_layers(latent))
    real = sum(p.numel() for p in latent.parameters()) - latent_bits
    assert (tmp_path / "packed.safetensors").stat().st_size < 1.1 * (4 * real + latent_bits / 8)


@pytest.mark.slow
def test_with_tau_one_the_expanded_detector_is_the_plain_one() -> None:
    plain, es = detector("bidet"), detector("es_bidet", tau=1)
    assert plain.state_dict().keys() == es.state_dict().keys()
    es.load_state_dict(plain.state_dict())
    x = images(1, seed=1)
    for model in (plain, es):
        model.eval()
    with torch.no_grad():
        for one, other in zip(plain.backbone(x), es.backbone(x), strict=True):
            assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pad", "shortcuts", "values"), [("bireal", 0, True, 4), ("xnor", 0, False, 4), ("bidet", -1, False, 8)]
)
def test_the_variants_by_config(name: str, pad: int, shortcuts: bool, values: int) -> None:
    model = detector(name, shortcuts=shortcuts)
    convs = [module for module in model.modules() if isinstance(module, BinaryLayer)]
    assert len(convs) == 25 and {conv.pad_value for conv in convs} == {pad}
    assert {conv.quantizer.detach_scale for conv in convs} == {name != "bidet"}
    assert {conv.sign.ste for conv in convs} == {"clip" if name == "xnor" else "poly2"}
    blocks = [*model.backbone.trunk.front, *model.backbone.trunk.back]
    assert [block.shortcut is None for block in blocks] == [not shortcuts] * 16
    with torch.no_grad():
        model.eval()
        scores, codes = model(images(1))
        same = pack_(model)(images(1))
    assert [len(y[0]) for y in codes] == [values * p for p in (4, 6, 6, 6, 4, 4)]
    for one, other in zip([*scores, *codes], [*same[0], *same[1]], strict=True):
        assert torch.equal(one, other)


def test_a_width_that_does_not_divide_is_named() -> None:
    with pytest.raises(InputError, match=r"tau"):
        detector("es_bidet", tau=3)
    with pytest.raises(InputError, match=r"variant must be one of bidet, bireal, xnor, got 'bnn'"):
        detector("bidet", variant="bnn")
