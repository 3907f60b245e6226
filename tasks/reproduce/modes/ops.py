"""What a row's network costs, counted: built without a file or an image, by each task's own rule for its input."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from esbnn_core import count, create_model, model_spec
from esbnn_core.errors import InputError
from esbnn_core.files import ROOT
from tasks.reproduce.tables.table import Row


@dataclass(frozen=True)
class RowCost:
    """Cost of one input.

    Attributes:
        ops: BOPs / 64 + FLOPs, regions of a two-stage detector included. ops_as_published: by the rule of the row's
            source. bops, flops: multiply-accumulates. params: all; binary_params: those of 1 bit each. size: (C, H, W).
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
        """Parameters in words of 32 bits: a binary weight is 1/32 (BI-DiffSR's "Params")."""
        return self.params - self.binary_params + self.binary_params / 32


def row_cost(row: Row) -> RowCost:
    """Count the network of a row.

    Raises:
        InputError: a network or option that does not exist, or a package that the task needs and that is not installed.
    """
    try:
        if row.task == "classification":
            return _classifier(row.network, tuple(sorted(row.options.items())), row.size, row.ops_rule)
        if row.task == "detection":
            return _detector(row.recipe, row.size, row.ops_rule)
        # what is counted, not where it is written: many recipes have one UNet
        unet = json.dumps([setting(row.recipe, f"model.{key}") or {} for key in ("unet", "overrides")], sort_keys=True)
        return _upsampler(unet, row.size, row.ops_rule)
    except ModuleNotFoundError as error:
        raise InputError(
            f"row {row.name} needs the package {error.name}, which is not installed: pip install 'esbnn[{row.task}]'"
        ) from error


@cache
def _classifier(
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


@cache
def _detector(recipe: tuple[str, ...], size: tuple[int, int, int] | None, rule: str) -> RowCost:
    from tasks.detection.cost import detector_cost
    from tasks.detection.module import DetectionModule

    if size is None or rule != "papers":
        raise InputError(f"the detector of {recipe[0]} is counted at a size and by the papers' rule: correct the row")
    overrides = setting(recipe, "model.overrides") or {}
    # not on the meta device: mmdet's init_weights looks at the numbers
    module = DetectionModule(model=str(ROOT / setting(recipe, "model.model")), overrides=overrides)
    c = detector_cost(module.network, size)
    regions = c.regions if c.region else 0
    bops, flops = (
        getattr(c.image, kind) + regions * (getattr(c.region, kind) if c.region else 0) for kind in ("bops", "flops")
    )
    return RowCost(c.ops, c.ops, bops, flops, c.params, c.binary_params, size)


@cache
def _upsampler(options: str, size: tuple[int, int, int] | None, rule: str) -> RowCost:
    """options: [model.unet, model.overrides] as json."""
    from tasks.super_resolution.cost import unet_cost
    from tasks.super_resolution.module import SIDE, SuperResolutionModule

    if rule == "int8" or (size is not None and size[1] != size[2]):
        raise InputError(f"a UNet has the size {size} and the rule {rule}, a square and no 8-bit layers were expected")
    side = size[1] if size else SIDE
    unet, overrides = json.loads(options)
    with torch.device("meta"):
        module = SuperResolutionModule(unet=unet, overrides=overrides)
    c = unet_cost(module.network, side)
    as_published = c.ops_with_attention if rule == "attention" else c.ops
    layers = c.layers
    return RowCost(c.ops, as_published, layers.bops, layers.flops, c.params, layers.binary_params, (3, side, side))


def setting(recipe: tuple[str, ...], name: str) -> Any:
    """The value of "a.b.c" in the last config that has it, as the task's command line takes it; None for none."""
    found = None
    for config in recipe:
        value: Any = read_config(ROOT / config)
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found = value if value is not None else found
    return found


@cache
def read_config(path: Path) -> dict[str, Any]:
    """A config as plain YAML. Raises InputError."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"config {path} cannot be read ({' '.join(str(error).split())}): restore it") from error
    if not isinstance(body, dict):
        raise InputError(f"config {path} holds no mapping: restore it")
    return body
