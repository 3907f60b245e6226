"""A stand-in, built on torchvision, for mmcv's compiled extension, which has no wheel for this torch.

mmcv-lite is mmcv without `mmcv._ext`. The stand-in has those of its functions that SSD and R-CNN call, with the same
arguments and results. Every other one raises NotImplementedError with its name when it is called, not when mmdet is
imported. A real extension, if installed, is used instead.
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
    """Put the stand-in into sys.modules unless the real extension can be imported; returns whether it is in use.

    It has to run before anything of mmcv.ops is imported; importing mmcv itself does not import mmcv.ops.
    """
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        sys.modules[NAME] = StandIn()
    return isinstance(sys.modules.get(NAME), StandIn)


class StandIn(ModuleType):
    """A module with the functions of PROVIDED; any other public name is a function that raises NotImplementedError."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        # no loader, so that mmcv's own check still finds no compiled operators
        self.__spec__ = importlib.machinery.ModuleSpec(NAME, None)
        for function in PROVIDED:
            setattr(self, function.__name__, function)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **options: Any) -> Any:
            raise NotImplementedError(
                f"mmcv's operator {name} is compiled code that mmcv-lite does not have, and the stand-in has only "
                f"{', '.join(f.__name__ for f in PROVIDED)}: install the full mmcv"
            )

        return missing


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the kept boxes, best score first.

    Args:
        boxes: (N, 4) corners.
        scores: (N,).
        iou_threshold: above which the lower score of two boxes is dropped.
        offset: 1 if corners are pixels inside the box, which makes a box one pixel wider; 0 otherwise.
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
    _check_average(pool_mode)
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
    _check_average(pool_mode)
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
    """Fill `output` (K, C, h, w) and the positions of its maxima from `input` (N, C, H, W) and `rois` (K, 5)."""
    kind = _at_least_float(input)
    values, positions = torch.ops.torchvision.roi_pool(
        input.to(kind), rois.to(kind), spatial_scale, pooled_height, pooled_width
    )
    output.copy_(values)
    argmax.copy_(positions)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill `grad_input` (N, C, H, W) from `grad_output` (K, C, h, w) and the positions of the maxima."""
    kind = _at_least_float(grad_output)
    grad = torch.ops.torchvision._roi_pool_backward(
        *(grad_output.to(kind), rois.to(kind), argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape),
    )
    grad_input.copy_(grad)


PROVIDED = (nms, roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward)


def _at_least_float(tensor: Tensor) -> torch.dtype:
    """float32 or float64, the types that torchvision's operators take on every device; they take no bfloat16."""
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("RoIAlign with pool_mode=max needs the full mmcv; torchvision only averages")
