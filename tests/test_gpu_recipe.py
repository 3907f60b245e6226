"""The recipe of CIFAR-10 as the GPU check trains it: numbers, draws, resuming; the order of the blocks."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from benchmarks.gpu_check import cifar10
from benchmarks.gpu_check.cifar10_recipe import NETWORKS, Draws, Loop, Recipe
from benchmarks.gpu_check.task import OutOfTime
from benchmarks.speed import gpu
from esbnn_core.errors import InputError
from esbnn_core.lit.callbacks import ReCUSchedule
from esbnn_core.lit.schedules import ProgressLR
from tests.helpers.gpu_check import make_task

ROOT = Path(__file__).parents[1]


def test_the_numbers_are_the_recipes() -> None:
    recipe = Recipe()
    found = yaml.safe_load((ROOT / "configs/classification/recu_r20_cifar10.yaml").read_text())
    model, data = found["model"], found["data"]
    rates = model["lr_scheduler"]["init_args"]
    given = {"lr": recipe.rate, "momentum": recipe.momentum, "weight_decay": recipe.decay}
    assert model["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": given}
    assert (found["trainer"]["max_epochs"], data["batch_size"]) == (recipe.epochs, recipe.batch)
    assert data["augmentation"] == {"mean": list(recipe.mean), "std": list(recipe.std)}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.rate)
    schedule, tau = ProgressLR(optimizer, **rates), ReCUSchedule(*recipe.tau)
    schedule.bind(recipe.epochs)
    for epoch in range(recipe.epochs):
        assert recipe.rate_of(epoch) == pytest.approx(recipe.rate * schedule.factor(epoch), rel=1e-9, abs=1e-15)
        assert recipe.tau_of(epoch) == pytest.approx(tau.tau(epoch, recipe.epochs), rel=1e-12)
    for name, options in NETWORKS.items():
        path = ROOT / f"configs/classification/{name.replace('resnet20', 'r20')}_cifar10.yaml"
        own = yaml.safe_load(path.read_text())["model"]
        assert (own["network"], own.get("network_options", {})) == (name, options)


def test_crops_and_mirrors_are_those_of_the_draws() -> None:
    """Every pixel of a batch is looked up by its own place."""
    recipe = Recipe(batch=3, pad=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = cifar10.random_images(7)
    loop, draws = Loop("recu_resnet20", recipe, images), Draws(7, recipe, 0, 5)
    loop.begin_epoch(5)
    loop.place.add_(3)
    got, labels = loop.batch()
    assert torch.equal(labels, images.labels[draws.order[3:]])
    padded = torch.zeros(7, 3, 36, 36)
    padded[:, :, 2:34, 2:34] = images.pixels / 255
    seen = set()
    for b, i in enumerate(range(3, 6)):
        top, left, mirrored = int(draws.corner[0, i]), int(draws.corner[1, i]), bool(draws.mirrored[i])
        seen.add(mirrored)
        for y, x in ((0, 0), (0, 31), (31, 5), (17, 30)):
            across = left + (31 - x if mirrored else x)
            assert torch.equal(got[b, :, y, x], padded[draws.order[i], :, top + y, across])
    assert seen == {False, True} and len(set(draws.order.tolist())) == 6
    assert not torch.equal(draws.order, Draws(7, recipe, 0, 6).order)


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=2, warm=1)
    images = {"train": cifar10.random_images(5), "test": cifar10.random_images(4)}
    whole, halves = make_task(tmp_path / "whole", "cifar10"), make_task(tmp_path / "halves", "cifar10")
    cifar10.train(whole, "recu_resnet20", recipe, images, {})

    def stop(loop: Loop, split: Any) -> float:
        halves.end = 0.0
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        # a test after the first epoch, during which the time runs out
        patch.setattr(cifar10, "EVERY", 1)
        patch.setattr(Loop, "top1", stop)
        with pytest.raises(OutOfTime, match="epoch 1 of 2; --resume goes on from there"):
            cifar10.train(halves, "recu_resnet20", recipe, images, {})
    halves.end = whole.end
    saved = cifar10.read_saved(halves, recipe)
    assert saved["recu_resnet20"]["epoch"] == 1 and len(saved["recu_resnet20"]["log"]) == 1
    cifar10.train(halves, "recu_resnet20", recipe, images, saved)
    ends = [torch.load(done.out / "cifar10.pt", weights_only=True)["recu_resnet20"] for done in (whole, halves)]
    for kind in ("network", "optimizer"):
        one, other = (end["state"][kind] for end in ends)
        flat = [(a, b) for a, b in zip(tensors(one), tensors(other), strict=True)]
        assert len(flat) > 40 and all(torch.equal(a, b) for a, b in flat)
    (tmp_path / "halves" / "cifar10.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="must be a checkpoint of this stage, got something else"):
        cifar10.read_saved(halves, recipe)


def test_a_capture_leaves_the_training_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that warm a graph up are taken back: with a stand-in for torch.cuda whose capture runs the step too."""
    loop = Loop("recu_resnet20", Recipe(batch=2), cifar10.random_images(5))
    loop.begin_epoch(0)
    loop.ready()
    loop.step()
    loop.step()  # the epoch's end
    before = [tensor.detach().clone() for tensor in loop.tensors()]
    waiting = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "Stream": lambda: waiting,
        "current_stream": lambda: waiting,
        "stream": lambda _: contextlib.nullcontext(),
        "graph": lambda _: contextlib.nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=loop.step),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    steps = []
    own = loop.step
    monkeypatch.setattr(loop, "step", lambda: steps.append(1) or own())
    monkeypatch.setattr(loop, "device", SimpleNamespace(type="cuda"))
    replay = loop.capture()
    assert loop.place.tolist() == [4, 5]
    assert len(steps) == 4 and len(before) > 150
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(loop.tensors(), before, strict=True))
    loop.begin_epoch(1)
    replay()
    assert not torch.equal(loop.loss, before[-2]) and loop.place.tolist() == [2, 3]


def tensors(state: Any) -> list[torch.Tensor]:
    """All tensors of a nested state, in its order."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.slow
def test_the_blocks_are_compiled_after_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(gpu, "compiled", lambda case: lambda i: case.real(case.x[i], case.x[i]))
    plan = gpu.Plan(1, 3, "cpu", blocks=((3, 32),), alone=((3, 32, 1),), small=(1, 2), copied=1 << 12)
    record = gpu.run(plan, 600.0, lambda rows: seen.append(tuple(len(rows[key]) for key in ("G1", "G2", "G3"))))
    assert seen == [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 2), (1, 1, 2), (1, 1, 2)]
    assert all("torch.compile bf16" in row["us"] for row in record["G1"] + record["G3"])
    assert "torch.compile bf16" not in gpu.run(plan, 0.0)["G1"][0]["us"]
    # a row that cannot be made is left out, and neither ends the others nor is compiled
    own = gpu.block
    monkeypatch.setattr(
        gpu, "block", lambda side, channels, batch, *rest, **more: own(side, channels, 1 // (2 - batch), *rest, **more)
    )
    failed: list[str] = []

    def attempt(label: str, work: Callable[[], None]) -> None:
        try:
            work()
        except ZeroDivisionError:
            failed.append(label)

    record = gpu.run(plan, 600.0, attempt=attempt)
    assert failed == ["G3 (3, 32, 2)"] and [len(record[key]) for key in ("G1", "G2", "G3")] == [1, 1, 1]
