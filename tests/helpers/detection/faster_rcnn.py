"""Small Faster R-CNNs of the shipped configs, and images with boxes for them."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esbnn_core.units.conv import BinaryUnit
from tasks.detection.mmdet.api import DetDataSample, InstanceData, build, load_config
from tasks.detection.models import register as networks  # noqa: F401  (their names in mmdet's registries)
from tasks.detection.models.bottleneck import Bottleneck
from tests.helpers.detection.narrow import head_widths

CONFIGS = Path(__file__).parents[3] / "configs" / "detection" / "mmdet"
BINARY = ("bidet", "es_bidet", "bireal", "xnor")
NAMES = (*BINARY, "real")


def config(name: str) -> Any:
    return load_config(CONFIGS / f"{name}_faster_rcnn_r18.py").model


def made(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """The detector of configs/detection/mmdet/NAME_faster_rcnn_r18.py with few regions, in training.

    changes: other values of the config by their place, e.g. rpn_head__tau=1.
    """
    options = config(name)
    options.train_cfg.rcnn.sampler.num = 24
    options.train_cfg.rpn_proposal.max_per_img = 100
    options.test_cfg.rpn.max_per_img = 30
    widths = {} if name == "real" else head_widths()
    for place, value in {**widths, **changes}.items():
        *parts, last = place.replace("__", ".").split(".")
        part = options
        for key in parts:
            part = part[key]
        part[last] = value
    torch.manual_seed(seed)
    return build(options).train()


def sample(height: int, width: int, boxes: list[list[float]], labels: list[int]) -> DetDataSample:
    size = (height, width)
    meta = {"img_shape": size, "ori_shape": size, "pad_shape": size, "batch_input_shape": size}
    made = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0), "img_path": "street.jpg", "img_id": "street"})
    made.gt_instances = InstanceData(bboxes=torch.tensor(boxes).float().view(-1, 4), labels=torch.tensor(labels).long())
    made.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return made


def batch(height: int = 144, width: int = 160) -> tuple[Tensor, list[DetDataSample]]:
    """Two images, the second one without an object."""
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    first = sample(height, width, [[10, 10, 120, 130], [40, 40, 150, 125], [5, 5, 90, 110]], [3, 7, 3])
    return x, [first, sample(height, width, [], [])]


def losses(model: nn.Module, x: Tensor, samples: list[DetDataSample]) -> dict[str, Tensor]:
    """Every loss as one number; mmdet's heads write into the samples, so they are copied."""
    torch.manual_seed(1)
    found = model.loss(x, copy.deepcopy(samples))
    return {key: sum(value) if isinstance(value, list | tuple) else value for key, value in found.items()}


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor, samples: list[DetDataSample]) -> list[InstanceData]:
    return [found.pred_instances for found in model.predict(x, copy.deepcopy(samples), rescale=False)]


def switch_on(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.switch_on()


@torch.no_grad()
def stir(model: nn.Module) -> nn.Module:
    """Statistics, affines and biases as after some training, so that images and copies are told apart; in eval."""
    generator = torch.Generator().manual_seed(5)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(1 + 0.3 * normal(module.weight))
            module.bias.copy_(0.3 * normal(module.bias))
            module.running_mean.copy_(0.3 * normal(module.running_mean))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
        elif isinstance(module, BinaryUnit) and module.conv.bias is not None:
            module.conv.bias.copy_(normal(module.conv.bias))
    for linear in (model.roi_head.bbox_head.fc_cls, model.roi_head.bbox_head.fc_reg):
        linear.weight.mul_(5)
    return model.eval()
