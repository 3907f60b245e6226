"""What mmdet 3.3.0 and what it imports get wrong for us, one named patch a fault, set on their objects in memory.

No file of an installed package is touched. Each patch replaces one attribute and can be taken back, so that a test can
show the fault without it: the day such a test fails, mmdet has mended it and the patch goes.
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
    """One attribute of mmdet, or of a library below it, with another value.

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
        """Inside, the library is as it was installed."""
        before = _before.pop(self.name)
        if before is _ABSENT:
            delattr(self.target(), self.attribute)
        else:
            setattr(self.target(), self.attribute, before)
        try:
            yield
        finally:
            self.apply()


def dump_whole(grammar: Any, filename: str) -> None:
    """Keep a grammar's tables in a file that is whole from the moment it has its name: yapf's Grammar.dump.

    Raises:
        OSError: the folder cannot be written to; yapf then goes on without the file.
    """
    write_atomically(filename, pickle.dumps(vars(grammar), pickle.HIGHEST_PROTOCOL))


YAPF_CACHE = Patch(
    name="yapf_cache",
    why="yapf names its cached grammar before it is written: of two processes with an empty home one dies on import",
    module="yapf_third_party._ylib2to3.pgen2.grammar",
    owner="Grammar",
    attribute="dump",
    value=dump_whole,
)
"""Of use only before mmengine is imported, which imports yapf."""

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
