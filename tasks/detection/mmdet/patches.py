"""Faults of mmdet 3.3.0 and of its dependencies, one named patch each, set on their objects in memory.

No file of an installed package changes. Each patch replaces one attribute and can be undone, so a test shows the fault
without it. When such a test fails, mmdet has fixed the fault and the patch can go.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.pool import ThreadPool
from typing import Any

from esbnn_core.files import write_atomically

_ABSENT: Any = object()
_before: dict[str, Any] = {}


@dataclass(frozen=True)
class Patch:
    """Another value for one attribute of mmdet or of a library that it imports.

    Attributes:
        name: of the patch.
        why: the fault that it fixes.
        module: that has the attribute.
        owner: class of the module that has the attribute, "" for the module itself.
        attribute: its name.
        value: that is set.
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
        """Inside, the attribute is as the library was installed."""
        before = _before.pop(self.name)
        if before is _ABSENT:
            delattr(self.target(), self.attribute)
        else:
            setattr(self.target(), self.attribute, before)
        try:
            yield
        finally:
            self.apply()


def dump_atomically(grammar: Any, filename: str) -> None:
    """Write a grammar's tables to a file that is complete as soon as it has its name, in place of yapf's Grammar.dump.

    Raises:
        OSError: the folder cannot be written to; yapf then continues without the file.
    """
    write_atomically(filename, pickle.dumps(vars(grammar), pickle.HIGHEST_PROTOCOL))


YAPF_CACHE = Patch(
    name="yapf_cache",
    why="yapf names its cached grammar before it is written: one of two processes with an empty home fails on import",
    module="yapf_third_party._ylib2to3.pgen2.grammar",
    owner="Grammar",
    attribute="dump",
    value=dump_atomically,
)
"""Must be applied before mmengine is imported, which imports yapf."""

PATCHES = (
    YAPF_CACHE,
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
        why="VOC's mAP forks a Pool, which hangs at its end under the SIGTERM handler of a Lightning run",
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
