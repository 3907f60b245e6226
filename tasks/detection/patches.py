"""What mmdet 3.3.0 gets wrong for us, one named patch a fault, set on mmdet's objects in memory.

No file of an installed package is touched. Each patch replaces one attribute and can be taken back, so that a test can
show the fault without it: the day such a test fails, mmdet has mended it and the patch goes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.pool import ThreadPool
from typing import Any

_ABSENT: Any = object()
_before: dict[str, Any] = {}


@dataclass(frozen=True)
class Patch:
    """One attribute of mmdet with another value.

    Attributes:
        name: of the patch. why: the fault that it mends.
        module, owner: where the attribute lives; owner "" is the module itself, else a class of it.
        attribute, value: what is set.
    """

    name: str
    why: str
    module: str
    owner: str
    attribute: str
    value: Any

    def target(self) -> Any:
        """The module or class that has the attribute."""
        module = import_module(self.module)
        return getattr(module, self.owner) if self.owner else module

    def apply(self) -> None:
        """Set the attribute; a second time does nothing."""
        if self.name not in _before:
            _before[self.name] = vars(self.target()).get(self.attribute, _ABSENT)
            setattr(self.target(), self.attribute, self.value)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside, mmdet is as it was installed."""
        before = _before.pop(self.name)
        if before is _ABSENT:
            delattr(self.target(), self.attribute)
        else:
            setattr(self.target(), self.attribute, before)
        try:
            yield
        finally:
            self.apply()


PATCHES = (
    Patch(
        name="ssd_head_loss_cls",
        why="SSDHead never sets loss_cls, which the prediction of its base class reads: AttributeError",
        module="mmdet.models.dense_heads.ssd_head",
        owner="SSDHead",
        attribute="loss_cls",
        value=None,
    ),
    Patch(
        name="voc_metric_threads",
        why="VOC's mAP forks a Pool, whose end hangs under the SIGTERM handler that a Lightning run installs",
        module="mmdet.evaluation.functional.mean_ap",
        owner="",
        attribute="Pool",
        value=ThreadPool,
    ),
)


def apply_patches() -> None:
    """Apply all of PATCHES."""
    for patch in PATCHES:
        patch.apply()
