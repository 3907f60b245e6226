"""Going on in the middle of an epoch: a loader that remembers how far it was, and skips what was seen.

Lightning keeps the state of a loader that has state_dict and load_state_dict in its checkpoint, and counts on it. With
EpochSampler's fixed order and EpochSeed's generators, fixed for every step, the resumed run is the uninterrupted one.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from esbnn_core.errors import InputError
from esbnn_core.lit.data import EpochSampler, mix_seed


class ResumableSampler(EpochSampler):
    """An EpochSampler whose next epoch can start behind its first items; the items skipped are not loaded."""

    skipped = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.skipped = self.skipped, 0
        return islice(super().__iter__(), start, None)


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a ResumableSampler that goes on behind the batches of an interrupted epoch.

    Batches count as seen when they are handed out, not when a worker has made them.
    """

    _seen = 0
    _left: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch; of the epoch that load_state_dict speaks of, those left."""
        sampler = self._order()
        left, self._left = self._left, None
        # a checkpoint of an epoch's end speaks of the epoch before this one: nothing to skip
        self._seen = left["batches"] if left is not None and left["epoch"] == sampler.epoch else 0
        if left is not None and self._seen and left["batch_size"] != self.batch_size:
            raise InputError(
                f"the run stopped in the middle of an epoch with batch_size={left['batch_size']}, which is now "
                f"{self.batch_size}: resume with the same, or from a checkpoint of an epoch's end"
            )
        sampler.skipped = self._seen * int(self.batch_size or 1)
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def _order(self) -> ResumableSampler:
        # Lightning builds a loader of predictions anew, around a batch sampler of its own over ours
        for sampler in (self.sampler, getattr(self.batch_sampler, "sampler", None)):
            if isinstance(sampler, ResumableSampler):
                return sampler
        raise InputError(
            f"ResumableLoader was given a {type(self.sampler).__name__}, a ResumableSampler was expected: it has to "
            f"skip what was seen"
        )

    def state_dict(self) -> dict[str, int]:
        """Where the epoch under way stands; Lightning's hook."""
        epoch = int(getattr(self.sampler, "epoch", 0))
        return {"epoch": epoch, "batches": self._seen, "batch_size": int(self.batch_size or 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from there; Lightning's hook."""
        self._left = state


def resumable_loader(
    items: Any,
    sampler: ResumableSampler,
    *,
    train: bool,
    seed: int,
    batch_size: int,
    num_workers: int,
    collate_fn: Callable[[Any], Any] | None = None,
    worker_init_fn: Callable[[int], None] | None = None,
    prefetch_factor: int | None = None,
    pin_memory: bool = False,
) -> ResumableLoader:
    """The loader of one part of a data module.

    Args:
        items: dataset, asked for the sampler's (index, seed). train: leave out a last batch that is not full. seed: of
            the data module. The others as DataLoader's; prefetch_factor counts with workers alone.
    """
    return ResumableLoader(
        items,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate_fn,
        worker_init_fn=worker_init_fn,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # a last batch of one image has no batch statistics
        drop_last=train and len(sampler) > batch_size,
        # private: drawing worker seeds from the global generator would shift the network's own draws
        generator=torch.Generator().manual_seed(mix_seed(seed, 2)),
    )
