"""The adapter to mmdet: the stand-in for mmcv's extension, the scope, and stock config files that load unchanged."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mmcv
import mmdet
import pytest
import torch
from mmcv.ops import nms, roi_align, roi_pool, soft_nms
from torch import Tensor

from esbnn_core.errors import InputError
from tasks.detection import pipelines
from tasks.detection.annotations import read_split
from tasks.detection.data import DetectionItems, collate
from tasks.detection.mmdet import api as mm
from tasks.detection.mmdet import standin_ops as mmcv_ext
from tasks.detection.module import DetectionModule
from tests.helpers.detection.tiny import EMBEDDED, TINY

STOCK = Path(mmdet.__file__).parent / ".mim" / "configs" / "pascal_voc"


def overlap(a: Tensor, b: Tensor, offset: int) -> float:
    """IoU of two boxes as mmcv defines it."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    both = max(width, torch.tensor(0.0)) * max(height, torch.tensor(0.0))
    areas = sum((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    return float(both / (areas - both))


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_the_definition_keeps(offset: int) -> None:
    torch.manual_seed(offset)
    corners = torch.rand(60, 2) * 12
    boxes = torch.cat((corners, corners + 1 + torch.rand(60, 2) * 8), 1)
    scores = torch.rand(60)
    want: list[int] = []
    for place in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[place], boxes[kept], offset) <= 0.4 for kept in want):
            want.append(place)
    _, kept = nms(boxes, scores, 0.4, offset)
    assert kept.tolist() == want and 5 < len(want) < 60
    if offset:
        # with so small boxes the extra pixel decides
        assert nms(boxes, scores, 0.4, 0)[1].tolist() != want


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_of_a_plane_is_its_value_at_the_middle_of_each_bin(aligned: bool) -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    plane = (3 * x + 5 * y).expand(2, 1, 16, 20).double().requires_grad_()
    rois = torch.tensor([[0, 4.0, 8.0, 24.0, 28.0], [1, 6.0, 6.0, 30.0, 22.0]], dtype=torch.float64)
    out = roi_align(plane, rois, (2, 4), 0.5, 2, "avg", aligned)
    shift = 0.5 if aligned else 0.0
    for k, (_, x1, y1, x2, y2) in enumerate((rois * 0.5).tolist()):
        for i in range(2):
            for j in range(4):
                middle_x = x1 - shift + (j + 0.5) * (x2 - x1) / 4
                middle_y = y1 - shift + (i + 0.5) * (y2 - y1) / 2
                assert out[k, 0, i, j].item() == pytest.approx(3 * middle_x + 5 * middle_y)
    # every output is a weighted mean: what flows back sums to what came in, image by image
    weights = torch.rand_like(out)
    (gradient,) = torch.autograd.grad(out, plane, weights)
    assert torch.allclose(gradient.sum((1, 2, 3)), weights.sum((1, 2, 3)))


def test_roi_pool_takes_the_largest_of_each_bin_and_sends_the_gradient_there() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    out = roi_pool(x, torch.tensor([[0.0, 0, 0, 7, 7]]), 2, 1.0)
    assert torch.equal(out, torch.nn.functional.max_pool2d(x, 4))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.autograd.grad(torch.nn.functional.max_pool2d(x, 4).sum(), x)[0])


def test_operators_run_on_half_precision() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 1, 8, 8], [20, 20, 30, 30]]).bfloat16()
    assert nms(boxes, torch.tensor([0.5, 0.75, 0.25]).bfloat16(), 0.5)[1].tolist() == [1, 2]
    out = roi_align(torch.ones(1, 1, 8, 8).bfloat16(), torch.tensor([[0.0, 1, 1, 5, 5]]), 2, 1.0, 0, "avg", True)
    assert out.dtype == torch.bfloat16 and torch.equal(out.float(), torch.ones(1, 1, 2, 2))


def test_an_operator_that_is_not_given_says_its_name_when_called() -> None:
    with pytest.raises(NotImplementedError, match="softnms"):
        soft_nms(torch.rand(3, 4), torch.rand(3))
    with pytest.raises(NotImplementedError, match="pool_mode=max"):
        roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), 2, 1.0, 0, "max", True)
    assert not mmcv.utils.ext_loader.check_ops_exist()


def test_the_real_extension_stays_in_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec(mmcv_ext.NAME, None)
    monkeypatch.delitem(sys.modules, mmcv_ext.NAME)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert not mmcv_ext.install() and mmcv_ext.NAME not in sys.modules
    real = ModuleType(mmcv_ext.NAME)
    monkeypatch.setitem(sys.modules, mmcv_ext.NAME, real)
    assert not mmcv_ext.install() and sys.modules[mmcv_ext.NAME] is real


def test_the_scope_is_set_inside_alone() -> None:
    def current() -> str | None:
        instance = mm.DefaultScope.get_current_instance()
        return None if instance is None else instance.scope_name

    before = current()
    with mm.scope():
        assert current() == "mmdet"
    with pytest.raises(InputError, match="model Nowhere of the config cannot be built"):
        mm.build({"type": "Nowhere"})
    mm.build({"type": "ResNet", "depth": 18, "base_channels": 8})
    assert current() == before


def test_what_a_config_would_fetch_is_named_and_left_out() -> None:
    whole = {
        "backbone": {"type": "ResNet", "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}},
        "heads": [{"pretrained": "a.pth", "init_cfg": {"type": "Xavier"}}],
    }
    assert mm.list_pretrained(whole) == ["torchvision://resnet18", "a.pth"]
    assert mm.drop_pretrained(whole) == {
        "backbone": {"type": "ResNet", "init_cfg": None},
        "heads": [{"pretrained": None, "init_cfg": {"type": "Xavier"}}],
    }
    assert whole["backbone"]["init_cfg"] is not None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"type": "ResNet", "depth": 19}, "model ResNet of the config cannot be built"),
        ({"type": "ResNet", "depth": 18, "deep": 1}, "unexpected keyword argument 'deep'"),
    ],
)
def test_a_wrong_config_is_one_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        mm.build(config)
    assert "\n" not in str(error.value)


def test_a_config_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config .*absent\.py does not exist"):
        mm.load_config(tmp_path / "absent.py")
    (tmp_path / "broken.py").write_text("model = dict(\n")
    with pytest.raises(InputError, match=r"config .*broken\.py cannot be read"):
        mm.load_config(tmp_path / "broken.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssd300_voc0712.py", "faster-rcnn_r50_fpn_1x_voc0712.py"])
def test_a_stock_config_gives_losses_and_predictions_on_real_images(name: str) -> None:
    """The file as mmdet ships it, its pipelines and its model, which then sees smaller images.

    SSD300 at the least side that leaves a pixel to its last map, Faster R-CNN a twelfth of the images.
    """
    path = str(STOCK / name)
    torch.manual_seed(0)
    train, evaluation = pipelines.read_pipelines(path)
    records = read_split(EMBEDDED, "VOC2007/train").records[:2]
    first = DetectionItems(records, pipelines.compose(train), random=True)[0, 0]
    assert first["inputs"].shape[0] == 3 and len(first["data_samples"].gt_instances) > 0
    smaller = pipelines.drop_augmentation(train, evaluation)
    if "faster" in name:
        assert min(first["inputs"].shape[1:]) == 600
    else:
        assert first["inputs"].shape[1:] == (300, 300)
    scale = (80, 48) if "faster" in name else (257, 257)
    smaller = [{**s, "scale": scale} if s["type"] == "Resize" else s for s in smaller]
    items = DetectionItems(records, pipelines.compose(smaller), random=False)
    module = DetectionModule(path, from_scratch=True)
    assert len(module.fetched) == 1
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    if "ssd" in name:  # what init_weights alone sets; before it the weight is whatever memory held
        assert (module.network.neck.l2_norm.weight == 20).all()
    module.train()
    places = [0] if "ssd" in name else [0, 1]  # an image of SSD300 takes seconds
    data = module.prepare(collate([items[i, 0] for i in places]), training=True)
    loss, parts = module.network.parse_losses(module.network(**data, mode="loss"))
    loss.backward()
    assert {"loss_cls", "loss_bbox"} <= set(parts) and torch.isfinite(loss) and loss > 0
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    module.eval()
    with torch.no_grad():
        samples = module.detect(collate([items[i, 0] for i in places]))
    assert len(samples) == len(places)
    for sample in samples:
        found, (height, width) = sample.pred_instances, sample.metainfo["ori_shape"]
        assert len(found) > 0 and found.bboxes.shape == (len(found), 4)
        assert (found.scores >= 0).all() and (found.labels < 20).all()
        assert found.bboxes[:, 0::2].max() <= width + 0.01 and found.bboxes[:, 1::2].max() <= height + 0.01


def test_classes_and_overrides_reach_the_model() -> None:
    module = DetectionModule(
        TINY, overrides={"backbone.base_channels": 8, "bbox_head.in_channels": (32, 64)}, num_classes=3
    )
    assert module.network.bbox_head.num_classes == 3
    assert module.network.backbone.conv1.out_channels == 8
    with pytest.raises(InputError, match="model SingleStageDetector of the config cannot be built"):
        DetectionModule(TINY, overrides={"backbone.breadth": 8})
