"""A packed detector as an ONNX file: the logits and boxes that its own prediction chooses from."""

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from esbnn_core import InputError, pack_, save_checkpoint
from tasks.detection.mmdet import api as mm
from tests.helpers.detection.faster_rcnn import made
from tests.helpers.detection.small_bidet import TINY_BIDET
from tests.helpers.detection.ssd300 import sample, warmed

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from esbnn_core.onnx import operators_library, session
from tasks.detection.onnx import export_detector, main

SIDE = 64


@pytest.mark.slow
@pytest.mark.usefixtures("narrow_trunks", "exporter_repeats_nothing")
@torch.no_grad()
def test_the_predicted_boxes_are_among_those_of_the_commands_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        operators_library()
    except InputError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    x = 40 * torch.randn(3, 3, SIDE, SIDE, generator=generator)
    config = mm.load_config(TINY_BIDET).to_dict()["model"]
    config["bbox_head"].update(in_channels=(128,))
    model = mm.build(config)
    detector = pack_(warmed(model, x))
    path, weights = tmp_path / "net.onnx", tmp_path / "packed.safetensors"
    save_checkpoint(detector, weights)
    monkeypatch.setattr(sys, "argv", ["onnx"])  # LightningCLI warns of arguments beside those of the process
    words = [str(path), "--model.model", TINY_BIDET, "--model.weights", str(weights)]
    words += ["--model.overrides", '{"bbox_head.in_channels": [128]}']
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter
        assert main([*words, "--size", str(SIDE), str(SIDE)]) == 0
    images, logits, boxes = capsys.readouterr().out.splitlines()[-3:]
    assert images == f"  in  images (batch, 3, {SIDE}, {SIDE})"
    priors = re.sub(r"  out boxes \(batch, (\d+), 4\)", r"\1", boxes)
    assert priors.isdigit() and logits == f"  out logits (batch, {priors}, 21)"
    runs = session(path, 1)
    for batch in (x, x[1:2]):
        logits, boxes = (torch.from_numpy(array) for array in runs.run(None, {"images": batch.numpy()}))
        assert len(logits) == len(batch) and boxes.min() >= 0 and boxes.max() <= SIDE
        scores = logits.softmax(-1)
        samples = [sample([], [], SIDE) for _ in batch]
        for i, each in enumerate(detector.predict(batch, samples, rescale=False)):
            found = each.pred_instances
            assert len(found) > 5
            for box, label, score in zip(found.bboxes, found.labels, found.scores, strict=True):
                near = (boxes[i] - box).abs().amax(1) < 1e-3
                assert near.any() and (scores[i, near, label] - score).abs().min() < 1e-5


def test_a_two_stage_detector_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is written of a single-stage detector, got BiDetFasterRCNN") as caught:
        export_detector(made("es_bidet"), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
