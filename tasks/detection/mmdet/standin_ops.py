"""A stand-in for mmcv's compiled extension, which has no wheel for this torch: what detectors need, on torchvision.

mmcv-lite is mmcv without `mmcv._ext`. The stand-in gives the functions of it that SSD and R-CNN call, with the same
arguments and results; every other one raises NotImplementedError with its name when it is called, not when mmdet is
imported. Where the real extension is installed it stays in charge.
"""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torchvision import ops

NAME = "mmcv._ext"


def install() -> bool:
    """Put the stand-in into sys.modules unless the real extension can be imported; whether a stand-in is in charge.

    It has to run before anything of mmcv.ops is imported, and only importing mmcv itself does not do that.
    """
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        sys.modules[NAME] = StandIn()
    return isinstance(sys.modules.get(NAME), StandIn)


class StandIn(ModuleType):
    """Module with the functions of PROVIDED; any other public name is a function that raises NotImplementedError."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        # no loader: mmcv's own question whether the compiled operators exist keeps its answer, no
        self.__spec__ = importlib.machinery.ModuleSpec(NAME, None)
        for function in PROVIDED:
            setattr(self, function.__name__, function)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **options: Any) -> Any:
            raise NotImplementedError(
                f"mmcv's operator {name} is compiled code that mmcv-lite does not have, and the stand-in gives only "
                f"{', '.join(f.__name__ for f in PROVIDED)}: install the full mmcv for it"
            )

        return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices int64 of the boxes kept, best score first.

    Args:
        boxes: (N, 4) corners. scores: (N,). offset: 1 where corners are pixels inside the box, else 0: a box is then
            one pixel wider, which is the box with its far corner moved by one.
    """
    wide = boxes.to(_at_least_float(boxes))
    if offset:
        wide = torch.cat((wide[:, :2], wide[:, 2:] + offset), 1)
    return ops.nms(wide, scores.to(wide.dtype), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` (K, C, h, w) from `input` (N, C, H, W) and `rois` (K, 5); only averages (pool_mode 1)."""
    _averages(pool_mode)
    kind, size = _at_least_float(input), (aligned_height, aligned_width)
    output.copy_(ops.roi_align(input.to(kind), rois.to(kind), size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input` (N, C, H, W) from `grad_output` (K, C, h, w)."""
    _averages(pool_mode)
    kind = _at_least_float(grad_output)
    grad = torch.ops.torchvision._roi_align_backward(
        *(grad_output.to(kind), rois.to(kind), spatial_scale, aligned_height, aligned_width, *grad_input.shape),
        *(sampling_ratio, aligned),
    )
    grad_input.copy_(grad)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill `output` (K, C, h, w) and the places of its maxima from `input` (N, C, H, W) and `rois` (K, 5)."""
    kind = _at_least_float(input)
    values, places = torch.ops.torchvision.roi_pool(
        input.to(kind), rois.to(kind), spatial_scale, pooled_height, pooled_width
    )
    output.copy_(values)
    argmax.copy_(places)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill `grad_input` (N, C, H, W) from `grad_output` (K, C, h, w) and the places of the maxima."""
    kind = _at_least_float(grad_output)
    grad = torch.ops.torchvision._roi_pool_backward(
        *(grad_output.to(kind), rois.to(kind), argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape),
    )
    grad_input.copy_(grad)


PROVIDED = (nms, roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward)


def _at_least_float(tensor: Tensor) -> torch.dtype:
    """torchvision's operators know float32 and float64 on every device, bfloat16 on none of ours."""
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def _averages(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("RoIAlign with pool_mode=max needs the full mmcv; torchvision has avg alone")
