"""Sampling and seeding: what an item draws depends on (seed, epoch, index) alone, whoever loads it."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from esbnn_core.errors import InputError
from esbnn_core.lit.data import (
    IGNORE,
    EpochSampler,
    MixedBatches,
    SeededDataset,
    as_it_is,
    mix_seed,
    seed_everything_at,
    seeded,
)

SPLITS = [(1, 1), (1, 4), (3, 8), (10, 3), (64, 8), (97, 4), (100, 7)]


def items(size: int, epoch: int = 0, **options: Any) -> list[tuple[int, int]]:
    sampler = EpochSampler(size, **{"shuffle": True, "seed": 5, **options})
    sampler.set_epoch(epoch)
    got = list(sampler)
    assert len(got) == len(sampler)
    return got


@pytest.mark.parametrize("size", [2**4, 101, 1000])
def test_the_order_comes_from_seed_and_epoch(size: int) -> None:
    order = [index for index, _ in items(size, epoch=3)]
    assert sorted(order) == list(range(size)) and order != sorted(order)
    assert items(size, epoch=3) == items(size, epoch=3)
    torch.manual_seed(1)
    random.seed(1)
    assert items(size, epoch=3) == items(size, epoch=3)
    for other in (items(size, epoch=4), items(size, epoch=3, seed=6)):
        assert [index for index, _ in other] != order
        # the seeds of the items are others too
        assert not dict(other).items() & dict(items(size, epoch=3)).items()
    # every epoch is a shuffle of its own: an image's place is no function of the last one's
    moved = [index for index, _ in items(size, epoch=4)]
    assert len({(b - a) % size for a, b in zip(order, moved, strict=True)}) > size // 8


@pytest.mark.parametrize(("size", "world"), SPLITS)
def test_evaluation_sees_every_image_once(size: int, world: int) -> None:
    ranks = [[i for i, _ in items(size, shuffle=False, rank=r, world=world)] for r in range(world)]
    assert {len(rank) for rank in ranks} == {-(-size // world)}
    flat = [i for rank in ranks for i in rank]
    assert sorted(i for i in flat if i != -1) == list(range(size))
    assert flat.count(-1) == -size % world
    assert all(rank == sorted(rank, key=lambda i: i if i >= 0 else size) for rank in ranks)


@pytest.mark.parametrize(("size", "world"), SPLITS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_training_is_split_evenly(size: int, world: int, epoch: int) -> None:
    alone = items(size, epoch)
    ranks = [items(size, epoch, rank=r, world=world) for r in range(world)]
    assert {len(rank) for rank in ranks} == {-(-size // world)}
    # interleaved, the ranks give the order of one process, then the epoch's start again
    joined = [rank[i] for i in range(len(ranks[0])) for rank in ranks]
    assert joined[:size] == alone
    assert joined[size:] == (alone * world)[: len(joined) - size]
    counts = [sum(i == j for j, _ in joined) for i in range(size)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("size", "world"), [(1, 1), (1, 4), (7, 2), (10, 3), (97, 4), (100, 7)])
@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_repeats_show_an_image_several_times_in_an_epoch_of_the_same_length(
    size: int, world: int, repeats: int
) -> None:
    plain = dict(items(size, epoch=2))
    written_out = [index for index in plain for _ in range(repeats)]
    needed = -(-size // world) * world
    ranks = [items(size, epoch=2, rank=r, world=world, repeats=repeats) for r in range(world)]
    joined = [rank[i] for i in range(len(ranks[0])) for rank in ranks]
    assert [index for index, _ in joined] == (written_out * world)[:needed]
    # the first copy is the image that a plain epoch shows, the others are other ones
    for index in {i for i, _ in joined}:
        seeds = [seed for i, seed in joined if i == index]
        assert seeds[0] == plain[index] and len(set(seeds)) == min(len(seeds), repeats)


@pytest.mark.parametrize(("size", "world"), [(10, 3), (97, 4), (100, 7)])
def test_repeats_are_dealt_out_as_timm_deals_them(size: int, world: int) -> None:
    samplers = pytest.importorskip("timm.data.distributed_sampler")
    order = [index for index, _ in items(size, epoch=1)]
    for rank in range(world):
        other = samplers.RepeatAugSampler(
            range(size), num_replicas=world, rank=rank, shuffle=False, num_repeats=3, selected_round=0
        )
        ours = [index for index, _ in items(size, epoch=1, rank=rank, world=world, repeats=3)]
        assert ours == [order[place] for place in other]


def test_repeats_belong_to_training() -> None:
    for options in ({"repeats": 0}, {"repeats": 2, "shuffle": False}):
        with pytest.raises(InputError, match=f"repeats must be .*, got {options['repeats']} with"):
            items(5, **options)


def test_item_seeds_differ_between_images_and_epochs_not_between_ranks() -> None:
    size, epochs = 500, 6
    table = {(e, i): s for e in range(epochs) for i, s in items(size, e)}
    assert len(set(table.values())) == len(table) == size * epochs
    for world in (2, 3, 8):
        for rank in range(world):
            for shuffle in (True, False):
                got = items(size, 4, rank=rank, world=world, shuffle=shuffle)
                assert all(s == table[4, i] for i, s in got if i >= 0)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Images (3, 8, 8) that are functions of their index, label = index mod 5."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return torch.arange(192.0).view(3, 8, 8) + index, index % 5


def jitter(image: Tensor) -> Tensor:
    return image + torch.rand(image.shape) + torch.randint(0, 9, (1,))


def test_a_draw_is_fixed_by_the_key_and_leaves_the_global_state() -> None:
    data = SeededDataset(Noisy(), jitter, random=True)
    assert len(data) == 23
    torch.manual_seed(0)
    first, label = data[7, 123]
    state = torch.get_rng_state()
    python = random.getstate()
    for _ in range(3):
        torch.rand(5)
        assert torch.equal(data[7, 123][0], first) and label == 2
    assert not torch.equal(data[7, 124][0], first)
    torch.set_rng_state(state)
    data[7, 123]
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    torch.manual_seed(123)
    assert torch.equal(jitter(Noisy()[7][0]), first)


def all_draws() -> tuple[float, float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random(), random.gauss(0, 1)


def test_all_three_generators_are_fixed_and_go_on_as_if_nothing_was_drawn() -> None:
    random.seed(1)
    random.gauss(0, 1)  # python keeps the second number of a pair: that is state too
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    seen = []
    for seed in (5, 2**63 - 1, 5):
        with seeded(seed):
            seen.append(all_draws())
            random.gauss(0, 1)
    assert seen[0] == seen[2] and all(a != b for a, b in zip(seen[0], seen[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]


def numpy_and_python(image: Tensor) -> Tensor:
    return image + np.random.rand() + random.gauss(0, 1)


def test_numpy_and_python_draws_do_not_depend_on_the_workers_either() -> None:
    alone, one, many = (list(batches(numpy_and_python, workers, 1)) for workers in (0, 1, 2))
    for (x, _), (x1, _), (x2, _) in zip(alone, one, many, strict=True):
        assert torch.equal(x, x1) and torch.equal(x, x2)
    assert not torch.equal(next(batches(numpy_and_python, 0, 2))[0], alone[0][0])


def test_a_transform_that_fails_leaves_the_global_state_too() -> None:
    def broken(image: Tensor) -> Tensor:
        torch.rand(3)
        raise RuntimeError("bad image")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="bad image"):
        SeededDataset(Noisy(), broken, random=True)[0, 5]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("drawn", [True, False])
def test_padding_is_labelled_to_be_ignored(drawn: bool) -> None:
    data = SeededDataset(Noisy(), jitter if drawn else torch.neg, random=drawn)
    image, label = data[-1, 9]
    assert label == IGNORE < 0 and image.shape == (3, 8, 8)
    assert torch.equal(image, data[0, 9][0]) and data[0, 9][1] == 0
    logits = torch.randn(2, 5)
    both = torch.nn.functional.cross_entropy(logits, torch.tensor([3, label]), ignore_index=IGNORE)
    torch.testing.assert_close(both, torch.nn.functional.cross_entropy(logits[:1], torch.tensor([3])))


def batches(transform: Any, workers: int, epoch: int, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """All batches of an epoch, rank after rank."""
    for rank in range(world):
        sampler = EpochSampler(23, shuffle=True, seed=2, rank=rank, world=world)
        sampler.set_epoch(epoch)
        data = SeededDataset(Noisy(), transform, random=True)
        torch.manual_seed(workers + 10 * world)  # what the workers' base seed comes from
        yield from DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers)


def test_batches_are_the_same_for_any_number_of_workers() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    transform = v2.Compose(
        [v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.RandomErasing(), v2.GaussianNoise()]
    )
    alone, many = list(batches(transform, 0, 1)), list(batches(transform, 2, 1))
    assert len(alone) == len(many) == 6
    for (x, y), (x2, y2) in zip(alone, many, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    other = next(batches(transform, 0, 2))
    assert not torch.equal(other[0], alone[0][0])
    # two processes draw for each image what one process draws: the padded 24th is a repeat
    key = [x.sum().item() for batch, _ in alone for x in batch]
    split = [x.sum().item() for batch, _ in batches(transform, 0, 1, world=2) for x in batch]
    assert set(split) == set(key) and len(split) == 24 and len(set(key)) == 23


def shift_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images + torch.rand(1), labels + np.random.rand()


def mixed(workers: int, epoch: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, Tensor]]:
    sampler = EpochSampler(23, shuffle=True, seed=2, rank=rank, world=world)
    sampler.set_epoch(epoch)
    data = MixedBatches(SeededDataset(Noisy(), torch.neg, random=False), shift_batch)
    assert len(data) == 23
    torch.manual_seed(workers)
    return list(DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=as_it_is))


def test_a_batch_is_mixed_as_a_whole_by_a_seed_of_its_own() -> None:
    alone = mixed(0, 1)
    for workers in (1, 2):
        for (x, y), (x2, y2) in zip(alone, mixed(workers, 1), strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)
    shifts = []
    for images, _ in alone:
        # pixel 0 is minus the index plus what the batch drew: one number for all its images
        drawn = images[:, 0, 0, 0] % 1
        assert torch.allclose(drawn, drawn[:1].expand_as(drawn), atol=1e-5)
        shifts.append(round(drawn[0].item(), 4))
    others = [round(x[0, 0, 0, 0].item() % 1, 4) for e, r, w in ((2, 0, 1), (1, 1, 2)) for x, _ in mixed(0, e, r, w)]
    assert len({*shifts, *others}) == len(shifts) + len(others) == 6 + 6 + 3


def test_mixed_seeds_are_in_range_and_do_not_collide() -> None:
    row = [mix_seed(seed, epoch, index) for seed in range(4) for epoch in range(25) for index in range(1000)]
    seen = set(row)
    assert len(seen) == 100_000 and min(seen) >= 0 and max(seen) < 2**63
    more = {mix_seed(a) for a in range(300)} | {mix_seed(a, b) for a in range(300) for b in range(-1, 300)}
    assert len(more) == 300 + 300 * 301 and not more & seen
    assert mix_seed(1, 2) != mix_seed(2, 1) and mix_seed(3, 0) != mix_seed(3)
    # every one of the 63 bits is set about half of the time
    share = torch.tensor([[s >> bit & 1 for bit in range(63)] for s in row[:20_000]]).double().mean(0)
    assert (share - 0.5).abs().max() < 0.03
    torch.Generator().manual_seed(max(seen))


def test_mix_seed_is_splitmix64() -> None:
    # the published first outputs of splitmix64 from state 0, shifted to 63 bits
    assert mix_seed(0) == 0xE220A8397B1DCDAF >> 1
    assert mix_seed(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4 >> 1


def test_global_seeding_reaches_torch_numpy_and_python() -> None:
    def draws(*parts: int) -> tuple[float, float, float]:
        seed_everything_at(*parts)
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    first = draws(1, 2, 3)
    assert draws(1, 2, 3) == first
    assert all(a != b for a, b in zip(first, draws(1, 2, 4), strict=True))
