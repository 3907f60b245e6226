"""Resume in the middle of an epoch: a loader that remembers how far it was, and skips what was seen.

Lightning keeps the state of a loader that has state_dict and load_state_dict in its checkpoint. With EpochSampler's
fixed order, and EpochSeed's generators fixed for every step, the resumed run equals the uninterrupted one.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, SequentialSampler

from esbnn_core.errors import InputError
from esbnn_core.lit.data import EpochSampler, mix_seed


class ResumableSampler(EpochSampler):
    """An EpochSampler whose next epoch can start after its first items; skipped items are not loaded."""

    skipped = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.skipped = self.skipped, 0
        return islice(super().__iter__(), start, None)


class InOrderSampler(ResumableSampler, SequentialSampler):  # type: ignore[misc]
    """A ResumableSampler in index order, which Lightning recognises as sequential (trainer.overfit_batches)."""


def make_sampler(
    size: int, trainer: L.Trainer | None, *, train: bool, seed: int = 0, repeats: int = 1
) -> ResumableSampler:
    """The sampler of one part of a data module, for this process of the run.

    Args:
        size: of the dataset.
        trainer: of the data module; None for a single process.
        train: a new order every epoch, unless trainer.overfit_batches asks for the same batches in every epoch.
        seed: of the run.
        repeats: as EpochSampler's.
    """
    rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
    if train and not overfits(trainer):
        return ResumableSampler(size, shuffle=True, seed=seed, rank=rank, world=world, repeats=repeats)
    sampler = InOrderSampler(size, shuffle=False, seed=seed, rank=rank, world=world)
    sampler.pads = not train
    return sampler


def overfits(trainer: L.Trainer | None) -> bool:
    """Whether the run trains on the same few batches in every epoch."""
    return trainer is not None and trainer.overfit_batches > 0  # type: ignore[attr-defined,no-any-return]


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a ResumableSampler that goes on after the batches of an interrupted epoch.

    A batch counts as seen when it is handed out, not when a worker has made it.
    """

    _seen = 0
    _left: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch; of the epoch that load_state_dict names, those left."""
        sampler = self._order()
        left, self._left = self._left, None
        # a checkpoint of an epoch's end names the epoch before this one: nothing to skip
        self._seen = left["batches"] if left is not None and left["epoch"] == sampler.epoch else 0
        if left is not None and self._seen and left["batch_size"] != self.batch_size:
            raise InputError(
                f"batch_size must be {left['batch_size']} to resume in the middle of an epoch, as before, got "
                f"{self.batch_size}: resume with that, or from a checkpoint of an epoch's end"
            )
        sampler.skipped = self._seen * int(self.batch_size or 1)
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def _order(self) -> ResumableSampler:
        # Lightning rebuilds a loader of predictions, with its own batch sampler around ours
        for sampler in (self.sampler, getattr(self.batch_sampler, "sampler", None)):
            if isinstance(sampler, ResumableSampler):
                return sampler
        raise InputError(
            f"the sampler of a ResumableLoader must be a ResumableSampler, got {type(self.sampler).__name__}: it has "
            f"to skip what was seen, so leave trainer.use_distributed_sampler false"
        )

    def state_dict(self) -> dict[str, int]:
        """How far the current epoch is; Lightning's hook."""
        epoch = int(getattr(self.sampler, "epoch", 0))
        return {"epoch": epoch, "batches": self._seen, "batch_size": int(self.batch_size or 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from there; Lightning's hook."""
        self._left = state


def resumable_loader(
    items: Any,
    sampler: ResumableSampler,
    *,
    drop_last: bool,
    seed: int,
    batch_size: int,
    num_workers: int,
    collate_fn: Callable[[Any], Any] | None = None,
    worker_init_fn: Callable[[int], None] | None = None,
    prefetch_factor: int | None = None,
    pin_memory: bool = False,
) -> ResumableLoader:
    """The loader of one part of a data module.

    The arguments that are not listed are DataLoader's.

    Args:
        items: dataset whose keys are the sampler's (index, seed).
        sampler: of the items.
        drop_last: leave out a last batch that is not full, where there is a full one. Only for a new order every epoch,
            in which each image has its turn.
        seed: of the data module.
        prefetch_factor: DataLoader's; used with workers only.
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
        drop_last=drop_last and len(sampler) > batch_size,
        # its own: drawing worker seeds from the global generator would shift the network's draws
        generator=torch.Generator().manual_seed(mix_seed(seed, 2)),
    )
