"""Samplers and datasets whose every draw is fixed by (seed, epoch, index): the same for any number of workers.

With them a run resumes exactly and two runs with one seed are equal: the order of an epoch comes from (seed, epoch)
alone, and what a random transform draws for an image from (seed, epoch, index), not from the worker it lands on.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

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
        size: of the dataset. shuffle: a new order every epoch (training) or index order (evaluation).
        seed: of the run. rank, world: this process and how many there are.

    Every process gets the same number of items. Where `world` does not divide `size`, training repeats items of the
    epoch's start, evaluation pads with index -1, which SeededDataset labels IGNORE: every image counts once.
    """

    def __init__(self, size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.size, self.shuffle, self.seed, self.rank, self.world = size, shuffle, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = list(range(self.size))
        missing = len(self) * self.world - self.size
        order += (order * missing)[:missing] if self.shuffle else [-1] * missing
        for index in order[self.rank :: self.world]:
            yield index, mix_seed(self.seed, self.epoch, index)


class SeededDataset(Dataset[tuple[Any, int]]):
    """Applies `transform` under the item's own seed; items are asked for by EpochSampler's (index, seed).

    Args:
        dataset: gives (image, label) for an index. transform: image -> tensor; `random` says whether it draws.
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
        # the CPU generator alone: torch.manual_seed would also queue a call for a GPU that a worker never touches
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(image), label
        finally:
            torch.set_rng_state(before)


def seed_everything_at(*parts: int) -> None:
    """Seed torch (all devices), numpy's global and python's generators from several numbers."""
    import numpy as np

    seed = mix_seed(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)
