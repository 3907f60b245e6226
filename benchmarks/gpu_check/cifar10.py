"""Stage 7: how long is an epoch of the CIFAR-10 recipe, and then as many epochs as there is time for.

Images stay on the device, and a training step is one CUDA graph (cifar10_recipe.py). First the graph is compared with
the same loop without one; then every network's epoch is timed both ways; then they train in turn, with a line a test
and a checkpoint, OUT/cifar10.pt, that --resume goes on from. Without cifar-10-batches-py in --data images are random:
the times are the same, and nothing trains.
"""

import io
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.cifar10_recipe import NETWORKS, Draws, Images, Loop, Recipe
from benchmarks.gpu_check.task import OutOfTime, Task
from esbnn_core.errors import InputError
from esbnn_core.files import write_atomically

FOLDER = "cifar-10-batches-py"
TINY = Recipe(epochs=2, batch=4, warm=1)
COMPARED = 20
"""Steps after which the graph and the plain loop are compared."""
EVERY = 10
"""Epochs from one test to the next."""
MARGIN = 12.0
"""Seconds before the stage's end at which training stops and its checkpoint is written."""


def random_images(number: int) -> Images:
    """Images in CIFAR-10's shape that have nothing to learn."""
    g = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (number, 3, 32, 32), generator=g, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 10, (number,), generator=g))


def read_images(task: Task) -> tuple[dict[str, Images], bool]:
    """The splits "train" and "test" on the device, and whether they are CIFAR-10's.

    Raises:
        InputError: a damaged dataset.
    """
    real = not task.rehearse and (Path(task.data) / FOLDER).is_dir()
    if not real:
        sizes = (9, 4) if task.rehearse else (50_000, 10_000)
        return {part: random_images(n).to(task.device) for part, n in zip(("train", "test"), sizes, strict=True)}, False
    # torchvision is needed for the real images alone
    from torchvision.datasets import CIFAR10

    found = {}
    for part in ("train", "test"):
        try:
            split = CIFAR10(task.data, train=part == "train")
        except RuntimeError as error:
            raise InputError(f"{task.data}/{FOLDER} must be CIFAR-10's files, got others: {error}") from error
        pixels = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
        found[part] = Images(pixels, torch.tensor(split.targets)).to(task.device)
    return found, True


def plain_step(loop: Loop, number: int, draws: Any, images: Images) -> None:
    """The step written plainly: images cut out one by one, whole numbers for places, the rate as a number."""
    recipe = loop.recipe
    chosen = range(number * recipe.batch, (number + 1) * recipe.batch)
    cuts: list[Tensor] = []
    for i in chosen:
        image = images.pixels[draws.order[i]]
        canvas = image.new_zeros(3, loop.side + 2 * recipe.pad, loop.side + 2 * recipe.pad)
        canvas[:, recipe.pad : recipe.pad + loop.side, recipe.pad : recipe.pad + loop.side] = image
        top, left = draws.corner[0, i], draws.corner[1, i]
        cut = canvas[:, top : top + loop.side, left : left + loop.side]
        cuts.append(cut.flip(2) if draws.mirrored[i] else cut)
    mean, std = (torch.tensor(v, device=loop.device).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))
    logits = loop.network((torch.stack(cuts).float() / 255 - mean) / std)
    loss = torch.nn.functional.cross_entropy(logits, images.labels[draws.order[list(chosen)].to(loop.device)])
    loop.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    loop.optimizer.step()


def plain_weights(name: str, recipe: Recipe, images: Images, steps: int) -> dict[str, Tensor]:
    """Weights and statistics after some plain steps."""
    loop = Loop(name, recipe, images)
    draws = Draws(len(images.labels), recipe, loop.seed, 0)
    loop.begin_epoch(0)
    for group in loop.optimizer.param_groups:
        group["lr"] = group["lr"].item()  # of the tensor, so that both round it once
    for number in range(steps):
        plain_step(loop, number, draws, images)
    return loop.network.state_dict()


def check_graph(task: Task, name: str, recipe: Recipe, images: Images) -> None:
    """The graph's loop against the same steps made plainly: equal weights, as far as the plain ones repeat."""
    torch.backends.cudnn.deterministic = True
    try:
        loop = Loop(name, recipe, images)
        loop.begin_epoch(0)
        replay = loop.capture()
        steps = min(COMPARED, loop.steps)
        for _ in range(steps):
            replay()
        plain, again = (plain_weights(name, recipe, images, steps) for _ in range(2))
    finally:
        torch.backends.cudnn.deterministic = False
    away = {key: (a.double() - plain[key].double()).abs().max().item() for key, a in loop.network.state_dict().items()}
    worst = max(away, key=lambda key: away[key])
    row = {"network": name, "steps": steps, "largest difference": away[worst], "at": worst}
    row["plain loop repeats itself"] = all(torch.equal(plain[key], again[key]) for key in plain)
    row["equal"] = all(torch.equal(a, plain[key]) for key, a in loop.network.state_dict().items())
    task.row("graph against plain loop", row)
    if row["plain loop repeats itself"] and not row["equal"]:
        task.fault(f"{name}: after {steps} steps {worst} of the graph is {away[worst]:.1e} from the plain loop's")


def time_epochs(task: Task, name: str, recipe: Recipe, images: dict[str, Images]) -> None:
    """Seconds of an epoch without a graph and with one, and of a test; the best of some."""
    loop = Loop(name, recipe, images["train"])
    loop.begin_epoch(0)
    loop.ready()
    row: dict[str, Any] = {"network": name, "steps": loop.steps, "batch": recipe.batch}

    def seconds(run: Any, epochs: int) -> float:
        best = math.inf
        for epoch in range(epochs):
            wait(task)
            began = time.perf_counter()
            loop.begin_epoch(epoch)
            for _ in range(loop.steps):
                run()
            wait(task)
            best = min(best, time.perf_counter() - began)
        return round(best, 4)

    row["seconds an epoch, plain calls"] = seconds(loop.step, 1 if task.rehearse else 2)
    began = time.perf_counter()
    replay = loop.capture()
    wait(task)
    row["seconds to capture"] = round(time.perf_counter() - began, 2)
    row["seconds an epoch, graph"] = seconds(replay, 1 if task.rehearse else 3)
    began = time.perf_counter()
    loop.top1(images["test"])
    row["seconds a test"] = round(time.perf_counter() - began, 4)
    tests = -(-recipe.epochs // EVERY)
    row["minutes of the recipe"] = round(
        (recipe.epochs * row["seconds an epoch, graph"] + tests * row["seconds a test"]) / 60, 2
    )
    task.row("epochs", row)


def wait(task: Task) -> None:
    """Until the device has done everything."""
    if not task.rehearse:
        torch.cuda.synchronize()


def train(task: Task, name: str, recipe: Recipe, images: dict[str, Images], saved: dict[str, Any]) -> None:
    """Train a network to the recipe's end or the stage's, from what was saved of it.

    Args:
        task: whose time and record.
        name: of NETWORKS.
        recipe: its numbers.
        images: both splits.
        saved: by network its "epoch", "state" and "log"; brought up to date.

    Raises:
        OutOfTime: epochs are left.
        RuntimeError: the loss is not finite.
    """
    own = saved.setdefault(name, {"epoch": 0, "state": None, "log": []})
    task.keep(training={key: value["log"] for key, value in saved.items()})
    if own["epoch"] >= recipe.epochs:
        return
    loop = Loop(name, recipe, images["train"])
    if own["state"] is not None:
        loop.restore(own["state"])
    loop.begin_epoch(own["epoch"])
    replay = loop.capture()
    began = time.monotonic()
    while own["epoch"] < recipe.epochs and task.left() > (0 if task.rehearse else MARGIN):
        loop.begin_epoch(own["epoch"])
        for _ in range(loop.steps):
            replay()
        own["epoch"] += 1
        if own["epoch"] % EVERY == 0 or own["epoch"] == recipe.epochs:
            test(task, loop, images["test"], own, began)
            task.keep(training={key: value["log"] for key, value in saved.items()})
            save(task, loop, own, saved)
    save(task, loop, own, saved)
    if own["epoch"] < recipe.epochs:
        raise OutOfTime(f"{name}: epoch {own['epoch']} of {recipe.epochs}; --resume goes on from there")


def test(task: Task, loop: Loop, images: Images, own: dict[str, Any], began: float) -> None:
    """Add a line to the log: mean loss and accuracy of the epoch, accuracy on the test split."""
    loss = loop.loss.item() / loop.steps
    if not math.isfinite(loss):
        raise RuntimeError(f"the mean loss of epoch {own['epoch']} is {loss}")
    line = {
        "epoch": own["epoch"],
        "loss": round(loss, 4),
        "train top1": round(100 * loop.right.item() / (loop.steps * loop.recipe.batch), 2),
        "test top1": round(loop.top1(images), 2),
        "seconds": round(time.monotonic() - began, 1),
    }
    own["log"].append(line)
    print(line, flush=True)


def save(task: Task, loop: Loop, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Write the checkpoint, whole."""
    own["state"] = loop.state()
    file = io.BytesIO()
    torch.save(saved, file)
    write_atomically(task.out / "cifar10.pt", file.getvalue())


def read_saved(task: Task, recipe: Recipe) -> dict[str, Any]:
    """What an earlier run saved, {} for nothing.

    Raises:
        InputError: a file that is something else.
    """
    path = task.out / "cifar10.pt"
    if not path.exists():
        return {}
    try:
        saved: dict[str, Any] = torch.load(path, map_location=task.device, weights_only=True)
        fits = all(name in NETWORKS and value["epoch"] <= recipe.epochs for name, value in saved.items())
    except Exception as error:
        raise InputError(f"{path} must be a checkpoint of this stage, got something else: remove it") from error
    if not fits:
        raise InputError(f"{path} must be of the networks and epochs of this stage, got others: remove it")
    return saved


def run(task: Task) -> None:
    """The stage."""
    recipe = TINY if task.rehearse else Recipe()
    images, real = read_images(task)
    task.keep(images=FOLDER if real else "random")
    names = list(NETWORKS)[: 2 if task.rehearse else None]
    for name in names:
        if not task.rehearse and name != names[0] and task.left() < 60:
            break
        task.attempt(f"graph of {name}", partial(check_graph, task, name, recipe, images["train"]))
        task.attempt(f"epochs of {name}", partial(time_epochs, task, name, recipe, images))
    seconds = [(row["network"], row["seconds an epoch, graph"]) for row in task.record.get("epochs", [])]
    told = "seconds an epoch: " + ", ".join(f"{name} {value}" for name, value in seconds)
    if not real and not task.rehearse:
        print(f"{told}; nothing was trained: {task.data} has no {FOLDER}")
        return
    saved = read_saved(task, recipe)
    try:
        for name in names:
            train(task, name, recipe, images, saved)
    except OutOfTime as stop:
        raise OutOfTime(f"{told}; {stop}") from None
    print(told)
