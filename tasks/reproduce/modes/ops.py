"""--mode ops: the cost of a row's network, built without a file or an image, by the rule of its task."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from esbnn_core import count, create_model, model_spec
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT
from tasks.reproduce.tables.configs import read_setting
from tasks.reproduce.tables.table import Row


@dataclass(frozen=True)
class RowCost:
    """Cost of one input.

    Attributes:
        ops: BOPs / 64 + FLOPs, with the regions of a two-stage detector.
        ops_as_published: by the rule of the row's source.
        bops: binary multiply-accumulates.
        flops: real multiply-accumulates.
        params: all parameters.
        binary_params: those of 1 bit each.
        size: (C, H, W) of the input.
    """

    ops: float
    ops_as_published: float
    bops: float
    flops: float
    params: int
    binary_params: int
    size: tuple[int, int, int]

    @property
    def words(self) -> float:
        """Parameters in words of 32 bits; a binary weight is 1/32 of one (BI-DiffSR's "Params")."""
        return self.params - self.binary_params + self.binary_params / 32


def count_row(row: Row) -> RowCost:
    """Count the network of a row.

    Raises:
        InputError: a network or option that does not exist, or a package that the task needs is not installed.
    """
    try:
        if row.task == "classification":
            return _count_classifier(row.network, tuple(sorted(row.options.items())), row.size, row.ops_rule)
        if row.task == "detection":
            return _count_detector(row.recipe, row.size, row.ops_rule)
        # by its options, not by its recipe: many recipes share one UNet, which is then counted once
        unet = json.dumps(
            [read_setting(row.recipe, f"model.{key}") or {} for key in ("unet", "overrides")], sort_keys=True
        )
        return _count_unet(unet, row.size, row.ops_rule)
    except ModuleNotFoundError as error:
        raise InputError(
            f"row {row.name} needs the package {error.name}, which is not installed: pip install 'esbnn[{row.task}]'"
        ) from error


@cache
def _count_classifier(
    network: str, options: tuple[tuple[str, Any], ...], size: tuple[int, int, int] | None, rule: str
) -> RowCost:
    with torch.device("meta"):
        model = create_model(network, **dict(options))
    spec = model_spec(model)
    assert spec is not None
    size = size or spec.input_size
    c = count(model, size)
    as_published = {"papers": c.ops, "int8": c.bops / 64 + c.flops / 8, "attention": c.ops_with_matmuls}[rule]
    return RowCost(c.ops, as_published, c.bops, c.flops, c.params, c.binary_params, size)


class _Undrawn(TorchFunctionMode):
    """Networks that are built here keep the memory that their weights got: drawing is most of building a detector."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # some functions of torch.nn.init are seen as such, of others what they call
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@cache
def _count_detector(recipe: tuple[str, ...], size: tuple[int, int, int] | None, rule: str) -> RowCost:
    from tasks.detection.cost import count_detector
    from tasks.detection.module import DetectionModule

    if size is None or rule != "papers":
        raise InputError(
            f"the row of {recipe[0]} must have a size and the rule papers, got {size} and {rule}: correct the row"
        )
    overrides = read_setting(recipe, "model.overrides") or {}
    # not on the meta device: mmdet's init_weights reads the weights
    with _Undrawn():
        module = DetectionModule(model=str(ROOT / read_setting(recipe, "model.model")), overrides=overrides)
    c = count_detector(module.network, size)
    regions = c.regions if c.region else 0
    bops, flops = (
        getattr(c.image, kind) + regions * (getattr(c.region, kind) if c.region else 0) for kind in ("bops", "flops")
    )
    return RowCost(c.ops, c.ops, bops, flops, c.params, c.binary_params, size)


@cache
def _count_unet(options: str, size: tuple[int, int, int] | None, rule: str) -> RowCost:
    """options: [model.unet, model.overrides] as json."""
    from tasks.super_resolution.cost import count_unet
    from tasks.super_resolution.module import SIDE, SuperResolutionModule

    if rule == "int8" or (size is not None and size[1] != size[2]):
        raise InputError(
            f"a UNet must have a square size and a rule other than int8, got {size} and {rule}: correct the row"
        )
    side = size[1] if size else SIDE
    unet, overrides = json.loads(options)
    with torch.device("meta"):
        module = SuperResolutionModule(unet=unet, overrides=overrides)
    c = count_unet(module.network, side)
    as_published = c.ops_with_attention if rule == "attention" else c.ops
    layers = c.layers
    return RowCost(c.ops, as_published, layers.bops, layers.flops, c.params, layers.binary_params, (3, side, side))
