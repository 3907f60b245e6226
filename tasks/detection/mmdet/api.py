"""The names of mmdet that this task uses. This is the one file that imports mmdet; others import it `as mm`.

It first installs the stand-in for mmcv's compiled operators (standin_ops) and applies the patches (patches). mmdet's
registries, config files and data structures stay as they are. mmengine looks up the `type` names of a config under a
default scope that is global to the process: `scope` sets it only while it is needed.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.detection.mmdet import patches, standin_ops

try:
    patches.YAPF_CACHE.apply()
    STAND_IN = standin_ops.install()
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
    "drop_pretrained",
    "eval_map",
    "get_box_tensor",
    "list_pretrained",
    "load_config",
    "multiclass_nms",
    "scope",
    "unpack_gt_instances",
]


@contextmanager
def scope() -> Iterator[None]:
    """Inside, config names are looked up in mmdet; afterwards the process's default scope is as before."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


def load_config(path: str | Path) -> Config:
    """Read an mmdet config file with its bases; a recipe's `configs/...` is found from any folder.

    Raises:
        InputError: a missing file, or one that mmengine cannot read.
    """
    path = below_repository(path)
    if not path.is_file():
        raise InputError(f"config {path} does not exist: give the path of an mmdet config file")
    try:
        # otherwise mmengine would import any module that a config file names
        return Config.fromfile(str(path), import_custom_modules=False)
    except Exception as error:  # a config file is Python code, which can fail in any way
        raise InputError(
            f"config {path} cannot be read ({type(error).__name__}: {str(error).strip().splitlines()[-1]})"
            if str(error).strip()
            else f"config {path} cannot be read ({type(error).__name__})"
        ) from error


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build a model, backbone or head from an mmdet config dict, with initialised weights and nothing fetched.

    mmdet leaves some parameters as uninitialised memory until init_weights is called, so it is called here. Weights
    that the config would fetch (`init_cfg` of type Pretrained) are left out, because the task loads files itself.

    Raises:
        InputError: a type that is not registered, or arguments that the type does not take.
    """
    # mmdet reads parts of it as attributes, which a plain dict does not have
    plain = ConfigDict(drop_pretrained(config))
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


def list_pretrained(config: Any) -> list[str]:
    """The files that a config would fetch weights from: every init_cfg of type Pretrained, every `pretrained`."""
    found: list[str] = []
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "init_cfg" and _fetches(value):
                found.append(str(value.get("checkpoint")))
            elif key == "pretrained" and isinstance(value, str):
                found.append(value)
            else:
                found += list_pretrained(value)
    elif isinstance(config, list | tuple):
        for value in config:
            found += list_pretrained(value)
    return found


def drop_pretrained(config: Any) -> Any:
    """A plain copy of a config in which nothing fetches weights."""
    if isinstance(config, Mapping):
        return {
            key: None
            if (key == "init_cfg" and _fetches(value)) or (key == "pretrained" and isinstance(value, str))
            else drop_pretrained(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(drop_pretrained(value) for value in config)
    return copy.deepcopy(config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, mmengine logs only warnings, not every tensor that it initialises."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fetches(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") == "Pretrained"
