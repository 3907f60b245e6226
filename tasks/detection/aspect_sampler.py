"""Batches of images that are all wide, or all tall, so that little of a batch is padding.

Source: papers.md#bidet-faster-rcnn.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from esbnn_core.lit.resumable import ResumableSampler


class GroupedSampler(ResumableSampler):
    """A ResumableSampler of training whose every batch holds images of one group, as mmdet's AspectRatioBatchSampler.

    The items are those of the order without groups, in that order but for this: an item waits until batch_size of its
    group have come. What is left of the groups at the end of the epoch follows, so at most one batch is mixed, and one
    smaller than the others. It keeps the number of items, so that a loader may cut them into batches and skip what an
    interrupted epoch has seen.

    Args:
        groups: of each item of the dataset, any numbers. batch_size: of the loader.
        seed, rank, world: as EpochSampler; each process groups its own share of the epoch.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(len(groups), shuffle=True, seed=seed, rank=rank, world=world)
        self.groups, self.batch_size = groups, batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.skipped = self.skipped, 0
        return islice(self._grouped(super().__iter__()), start, None)

    def _grouped(self, items: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        waiting: dict[int, list[tuple[int, int]]] = {group: [] for group in sorted(set(self.groups))}
        for item in items:
            row = waiting[self.groups[item[0]]]
            row.append(item)
            if len(row) == self.batch_size:
                yield from row
                row.clear()
        for row in waiting.values():
            yield from row
