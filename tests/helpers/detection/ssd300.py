"""What the tests of SSD300 share: detectors by config, real-looking batches, and warmed statistics."""

from typing import Any

import torch
from torch import Tensor, nn

import tasks.detection.models.register  # noqa: F401  (registers our parts)
from tasks.detection.mmdet import api as mm
from tasks.detection.models import ssd_vgg

CONFIG = "configs/detection/mmdet/{}_ssd300.py"


def detector(name: str, **backbone: Any) -> Any:
    """The detector of a config, with other options of its backbone."""
    torch.manual_seed(0)
    config = mm.load_config(CONFIG.format(name)).to_dict()["model"]
    config["backbone"].update(backbone)
    config["bbox_head"]["in_channels"] = ssd_vgg.SOURCES
    return mm.build(config)


def images(number: int, seed: int = 0) -> Tensor:
    """(number, 3, 300, 300): coloured rectangles on noise, in the range of images without their mean."""
    generator = torch.Generator().manual_seed(seed)
    x = 20 * torch.randn(number, 3, 300, 300, generator=generator)
    for image in x:
        for _ in range(6):
            low, size = (
                torch.randint(0, 200, (2,), generator=generator),
                torch.randint(30, 100, (2,), generator=generator),
            )
            colour = 100 * torch.randn(3, 1, 1, generator=generator)
            image[:, low[0] : low[0] + size[0], low[1] : low[1] + size[1]] += colour
    return x


def sample(boxes: list[list[float]], labels: list[int], side: int = 300) -> Any:
    """A DetDataSample of one square image; boxes are corners in pixels."""
    truth, ignored = mm.InstanceData(), mm.InstanceData()
    truth.bboxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    truth.labels = torch.tensor(labels, dtype=torch.long)
    ignored.bboxes, ignored.labels = truth.bboxes[:0], truth.labels[:0]
    shapes = {"img_shape": (side, side), "pad_shape": (side, side), "ori_shape": (side, side)}
    data = mm.DetDataSample(metainfo={**shapes, "scale_factor": (1.0, 1.0)})
    data.gt_instances, data.ignored_instances = truth, ignored
    return data


@torch.no_grad()
def warmed(model: nn.Module, x: Tensor) -> nn.Module:
    """In evaluation, with the batch's statistics, affines that differ between channels, and scores far from equal."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
    model.train()(x)
    return model.eval()
