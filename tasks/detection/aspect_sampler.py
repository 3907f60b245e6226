"""Batches of images that are all wide or all tall, with little padding (papers.md#bidet-faster-rcnn)."""

from collections.abc import Iterator, Sequence
from itertools import islice

from esbnn_core.lit.resumable import ResumableSampler


class GroupedSampler(ResumableSampler):
    """A ResumableSampler for training with images of one group in each batch, as mmdet's AspectRatioBatchSampler.

    The items keep the order without groups, except that an item waits until its group has batch_size of them. The rest
    of the groups follows at the end of the epoch, so at most one batch is mixed and one is smaller than the others. The
    number of items stays, so that a loader can cut them into batches and skip what an interrupted epoch has seen. The
    loader keeps a last batch that is not full, as mmdet's does: it would otherwise leave out the same images in every
    epoch, those of a group that is smaller than a batch.

    Args:
        groups: of each item of the dataset, any numbers.
        batch_size: of the loader.
        seed: as EpochSampler.
        rank: as EpochSampler; each process groups its own share of the epoch.
        world: as EpochSampler.
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
            queue = waiting[self.groups[item[0]]]
            queue.append(item)
            if len(queue) == self.batch_size:
                yield from queue
                queue.clear()
        for queue in waiting.values():
            yield from queue
