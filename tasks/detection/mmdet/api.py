"""mmdet as this task uses it: the one file that imports it, with what it lacks (mmcv_ext) and gets wrong (patches).

mmdet's own registries, config files and data structures are handed on unchanged. mmengine's default scope, under which
a config's `type` names are looked up, is global to the process: `scope` sets it for as long as it is needed.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.detection.mmdet import patches
from tasks.detection.mmdet import standin_ops as mmcv_ext

try:
    patches.YAPF_CACHE.apply()
    STAND_IN = mmcv_ext.install()
    import mmdet.datasets
    import mmdet.evaluation
    import mmdet.models  # noqa: F401  (fills the registries)
    from mmdet.evaluation.functional import eval_map
    from mmdet.models.dense_heads import RPNHead, SSDHead
    from mmdet.models.detectors import FasterRCNN
    from mmdet.models.layers import multiclass_nms
    from mmdet.models.roi_heads import BBoxHead, StandardRoIHead
    from mmdet.models.task_modules import AnchorGenerator
    from mmdet.models.task_modules.coders import BaseBBoxCoder
    from mmdet.models.utils import unpack_gt_instances
    from mmdet.registry import DATASETS, METRICS, MODELS, TASK_UTILS, TRANSFORMS
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes, bbox2roi, get_box_tensor
    from mmengine.config import Config, ConfigDict
    from mmengine.dataset import Compose
    from mmengine.logging import MMLogger
    from mmengine.model import BaseModule
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData
except ImportError as error:
    raise ImportError(f'detection needs mmdet: pip install "esbnn[detection]" ({error})') from error
from torch import nn

from esbnn_core.errors import InputError
from esbnn_core.files import below_repository

patches.apply_patches()

__all__ = [
    "DATASETS",
    "METRICS",
    "MODELS",
    "STAND_IN",
    "TASK_UTILS",
    "TRANSFORMS",
    "AnchorGenerator",
    "BBoxHead",
    "BaseBBoxCoder",
    "BaseModule",
    "Compose",
    "Config",
    "DetDataSample",
    "FasterRCNN",
    "HorizontalBoxes",
    "InstanceData",
    "RPNHead",
    "SSDHead",
    "StandardRoIHead",
    "bbox2roi",
    "build",
    "eval_map",
    "get_box_tensor",
    "load_config",
    "multiclass_nms",
    "pretrained",
    "scope",
    "unpack_gt_instances",
    "without_pretrained",
]


@contextmanager
def scope() -> Iterator[None]:
    """Inside, the names of a config are mmdet's; afterwards the process's default scope is what it was."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


def load_config(path: str | Path) -> Config:
    """An mmdet config file, with its bases; a recipe's `configs/...` is found from any folder.

    Raises:
        InputError: a missing file, or one that mmengine cannot read.
    """
    path = below_repository(path)
    if not path.is_file():
        raise InputError(f"config {path} does not exist: give the path of an mmdet config file")
    try:
        # without it mmengine would import whatever a config file names
        return Config.fromfile(str(path), import_custom_modules=False)
    except Exception as error:  # a config file is python code, which can fail in any way
        raise InputError(
            f"config {path} cannot be read ({type(error).__name__}: {str(error).strip().splitlines()[-1]})"
            if str(error).strip()
            else f"config {path} cannot be read ({type(error).__name__})"
        ) from error


def build(config: Mapping[str, Any]) -> nn.Module:
    """A model, backbone or head from an mmdet config dict, its weights initialised and nothing fetched.

    mmdet leaves some parameters as uninitialised memory until init_weights is called, so it is called here. Weights
    that the config would fetch (`init_cfg` of type Pretrained) are left out, see `pretrained`: the task loads files.

    Raises:
        InputError: a type that no registry knows, or arguments that the type does not take.
    """
    # mmdet reads parts of it as attributes, which plain dicts do not have
    plain = ConfigDict(without_pretrained(config))
    try:
        with scope(), _quiet():
            model: Any = MODELS.build(plain)
            if hasattr(model, "init_weights"):
                model.init_weights()
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError, ImportError, AttributeError, ArithmeticError) as error:
        lines = str(error.args[0] if error.args else error).strip().splitlines()
        reason = lines[0].rstrip(" .") if lines else type(error).__name__
        raise InputError(f"model {plain.get('type')} of the config cannot be built ({reason})") from error
    return model


def pretrained(config: Any) -> list[str]:
    """The files that a config would fetch weights from: every init_cfg of type Pretrained, every `pretrained`."""
    found: list[str] = []
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "init_cfg" and _fetches(value):
                found.append(str(value.get("checkpoint")))
            elif key == "pretrained" and isinstance(value, str):
                found.append(value)
            else:
                found += pretrained(value)
    elif isinstance(config, list | tuple):
        for value in config:
            found += pretrained(value)
    return found


def without_pretrained(config: Any) -> Any:
    """A plain copy of a config in which nothing fetches weights."""
    if isinstance(config, Mapping):
        return {
            key: None
            if (key == "init_cfg" and _fetches(value)) or (key == "pretrained" and isinstance(value, str))
            else without_pretrained(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(without_pretrained(value) for value in config)
    return copy.deepcopy(config)


@contextmanager
def _quiet() -> Iterator[None]:
    """mmengine tells of every tensor that it initialises; inside it keeps to warnings."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fetches(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") == "Pretrained"
