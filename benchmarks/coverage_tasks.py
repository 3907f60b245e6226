"""Networks that are not classifiers, with the arguments of a forward and a loss: detectors, segmentation, UNets.

Small images, and as many boxes whatever the weights are, so that the cost of a box head can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torchvision.models import detection, segmentation

_NO_WEIGHTS: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 5}
_SIDES = {"min_size": 64, "max_size": 64}
_BOXES = {"rpn_post_nms_top_n_test": 16, "rpn_nms_thresh": 1.0, "box_nms_thresh": 1.0, "box_score_thresh": 0.0}


@dataclass(frozen=True)
class Subject:
    """A network by its builder.

    Attributes:
        build: the network with fresh weights.
        example: number of images -> the arguments of one forward.
        loss: (network in training mode, arguments) -> the value to minimise.
    """

    build: Callable[[], nn.Module]
    example: Callable[[int], tuple[Any, ...]]
    loss: Callable[[nn.Module, tuple[Any, ...]], Tensor]


def tensors_of(output: object) -> list[Tensor]:
    """The tensors of a network's output, whatever it is."""
    output = getattr(output, "sample", output)  # of a UNet of diffusers
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def _images(number: int) -> tuple[Any, ...]:
    return ([torch.rand(3, 64, 64) for _ in range(number)],)


def _batch(number: int) -> tuple[Any, ...]:
    return (torch.rand(number, 3, 64, 64) - 0.5,)


def _detection_loss(model: nn.Module, example: tuple[Any, ...]) -> Tensor:
    boxes, masks = torch.tensor([[4.0, 4.0, 40.0, 50.0]]), torch.ones(1, 64, 64, dtype=torch.uint8)
    targets = [{"boxes": boxes, "labels": torch.tensor([1]), "masks": masks} for _ in example[0]]
    return torch.stack(list(model(*example, targets).values())).sum()


def _squares(model: nn.Module, example: tuple[Any, ...]) -> Tensor:
    return torch.stack([value.square().mean() for value in tensors_of(model(*example))]).sum()


def _detector(build: Callable[..., nn.Module], **options: Any) -> Subject:
    return Subject(lambda: build(**_NO_WEIGHTS, **options), _images, _detection_loss)


def _segmentation(build: Callable[..., nn.Module]) -> Subject:
    return Subject(lambda: build(**_NO_WEIGHTS), _batch, _squares)


def _mmdet() -> nn.Module:
    import mmdet

    from tasks.detection.mmdet import api

    folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "retinanet"
    config = api.load_config(folder / "retinanet_r18_fpn_1x_coco.py").model
    api.drop_pretrained(config)
    return api.build(config)


def _unet(**options: Any) -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(sample_size=16, **options)


def _small_unet() -> nn.Module:
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return _unet(block_out_channels=(32, 64), down_block_types=down, up_block_types=up, norm_num_groups=8)


def _conditional_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    widths = {"block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 32}
    return UNet2DConditionModel(sample_size=16, down_block_types=down, up_block_types=up, **widths)


def _noisy(channels: int, *more: int) -> Callable[[int], tuple[Any, ...]]:
    def example(number: int) -> tuple[Any, ...]:
        steps = torch.arange(number) * 100 + 1
        return (torch.randn(number, channels, 16, 16), steps, *([torch.randn(number, *more)] if more else []))

    return example


TASKS: dict[str, Subject] = {
    "fasterrcnn_resnet50_fpn": _detector(detection.fasterrcnn_resnet50_fpn, **_SIDES, **_BOXES),
    "maskrcnn_resnet50_fpn": _detector(detection.maskrcnn_resnet50_fpn, **_SIDES, **_BOXES, box_detections_per_img=8),
    "retinanet_resnet50_fpn": _detector(detection.retinanet_resnet50_fpn, **_SIDES),
    "fcos_resnet50_fpn": _detector(detection.fcos_resnet50_fpn, **_SIDES),
    "ssdlite320_mobilenet_v3_large": _detector(detection.ssdlite320_mobilenet_v3_large),
    "deeplabv3_resnet50": _segmentation(segmentation.deeplabv3_resnet50),
    "fcn_resnet50": _segmentation(segmentation.fcn_resnet50),
    "lraspp_mobilenet_v3_large": _segmentation(segmentation.lraspp_mobilenet_v3_large),
    "mmdet/retinanet_r18_fpn": Subject(_mmdet, _batch, _squares),
    "diffusers/UNet2DModel": Subject(_unet, _noisy(3), _squares),
    "diffusers/UNet2DModel (32, 64)": Subject(_small_unet, _noisy(3), _squares),
    "diffusers/UNet2DConditionModel (32, 64)": Subject(_conditional_unet, _noisy(4, 7, 32), _squares),
}
