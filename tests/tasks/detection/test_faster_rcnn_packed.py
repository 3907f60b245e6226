"""The packed Faster R-CNN detects what the latent one does, built from its file too."""

import copy

import pytest
import torch

from esbnn_core import pack_
from esbnn_core.packed.layers import PackedConv2d
from esbnn_core.transforms.pack import pack_layout_
from tests.helpers.detection.faster_rcnn import batch, made, predictions, stir

pytestmark = pytest.mark.usefixtures("narrow_trunks")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("bidet", (144, 160)),
        ("es_bidet", (144, 160)),
        ("es_bidet", (131, 217)),
        ("bireal", (144, 160)),
        ("xnor", (131, 217)),
    ],
)
def test_the_packed_detector_predicts_the_same(name: str, size: tuple[int, int]) -> None:
    model = stir(made(name))
    x, samples = batch(*size)
    latent = predictions(model, x, samples)
    packed = pack_(copy.deepcopy(model))
    assert sum(isinstance(m, PackedConv2d) for m in packed.modules()) == 17
    assert not any(key.endswith("bottleneck.on") for key in packed.state_dict())
    for want, got in zip(latent, predictions(packed, x, samples), strict=True):
        assert torch.equal(want.bboxes, got.bboxes) and torch.equal(want.labels, got.labels)
        assert (want.scores - got.scores).abs().max() < 1e-4
        assert 20 < len(want) <= 100 and len(want.labels.unique()) > 1 and want.scores.std() > 1e-3


def test_a_packed_detector_is_laid_out_without_a_latent_one() -> None:
    model = stir(made("es_bidet"))
    x, samples = batch()
    packed = pack_(copy.deepcopy(model))
    laid_out = pack_layout_(made("es_bidet", seed=9))
    laid_out.load_state_dict(packed.state_dict())
    for want, got in zip(predictions(model, x, samples), predictions(laid_out, x, samples), strict=True):
        assert torch.equal(want.bboxes, got.bboxes) and torch.equal(want.scores, got.scores)
