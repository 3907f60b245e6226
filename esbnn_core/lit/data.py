"""Samplers and datasets whose every draw is fixed by (seed, epoch, index): the same for any number of workers.

With them a run resumes exactly, and two runs with one seed are equal. The order of an epoch comes from (seed, epoch)
alone. What a random transform draws for an image comes from (seed, epoch, index), not from the worker that loads it.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from esbnn_core.errors import InputError

IGNORE = -1
"""Label of a padded evaluation sample: losses and metrics skip it."""


def mix_seed(*parts: int) -> int:
    """One seed of 63 bits from several numbers (splitmix64 steps), well spread for neighbouring inputs."""
    state = 0
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (index, seed of the item) for one process of a run; Lightning calls set_epoch.

    Args:
        size: of the dataset.
        shuffle: a new order every epoch (training) or index order (evaluation).
        seed: of the run.
        rank: of this process.
        world: number of processes.
        repeats: how many times in a row training shows each image of an epoch, every copy under its own seed. The epoch
            keeps its length and takes the first size / repeats images of its order (repeated augmentation, Hoffer et
            al.; the order of timm's RepeatAugSampler: the ranks share the copies of an image).

    Every process gets the same number of items. If `world` does not divide `size`, training repeats items of the
    epoch's start and evaluation pads with index -1, which SeededDataset labels IGNORE: every image counts once.

    Attributes:
        pads: whether an order without shuffle pads; training in index order repeats as other training does.

    Raises:
        InputError: repeats below 1, or above 1 without shuffle.
    """

    pads = True

    def __init__(
        self, size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1, repeats: int = 1
    ) -> None:
        if repeats < 1 or (repeats > 1 and not shuffle):
            raise InputError(
                f"repeats must be a whole number of at least 1 in training and 1 in evaluation, got {repeats} "
                f"{'with' if shuffle else 'without'} shuffle: set it to 1"
            )
        self.size, self.shuffle, self.seed, self.rank, self.world = size, shuffle, seed, rank, world
        self.repeats = repeats
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if not self.shuffle:
            for index in range(self.rank, len(self) * self.world, self.world):
                if index >= self.size:
                    index = -1 if self.pads else index % self.size
                yield index, mix_seed(self.seed, self.epoch, index)
            return
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        for place in range(self.rank, len(self) * self.world, self.world):
            turn, copy = divmod(place, self.repeats)
            index = order[turn % self.size]
            yield index, mix_seed(self.seed, self.epoch, index, *([copy] if copy else []))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), numpy and python for the block; afterwards they go on as before it."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # the CPU generator alone: torch.manual_seed would also queue a call for a GPU that a worker never touches
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


class SeededDataset(Dataset[tuple[Any, int]]):
    """Applies `transform` under the item's own seed; its keys are EpochSampler's (index, seed).

    Args:
        dataset: gives (image, label) for an index.
        transform: image -> tensor.
        random: whether the transform draws from any global generator of torch, numpy or python.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Any], random: bool) -> None:
        self.dataset, self.transform, self.random = dataset, transform, random

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int]:
        index, seed = key
        image, label = self.dataset[max(index, 0)]
        if index < 0:
            label = IGNORE
        if not self.random:
            return self.transform(image), label
        with seeded(seed):
            return self.transform(image), label


class MixedBatches(Dataset[Any]):
    """A SeededDataset whose batches are mixed as a whole (mixup, cutmix); the loader needs collate_fn=as_it_is.

    A batch is mixed by the worker that loads it, under a seed made from that of its first item. The seed differs from
    batch to batch and from rank to rank; the number of workers and the place where a run resumes do not change it.

    Args:
        items: the dataset.
        mix: (images (B, C, H, W), labels (B,)) -> the same mixed, drawn from global generators.
    """

    def __init__(self, items: SeededDataset, mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.items, self.mix = items, mix

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """torch's hook for a whole batch."""
        images, labels = default_collate([self.items[key] for key in keys])
        with seeded(mix_seed(keys[0][1], _BATCH)):
            return self.mix(images, labels)


_BATCH = 1


def as_it_is(batch: Any) -> Any:
    """The collate function of a dataset that gives whole batches."""
    return batch


def seed_everything_at(*parts: int) -> None:
    """Seed torch (all devices), numpy's global and python's generators from several numbers."""
    seed = mix_seed(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
