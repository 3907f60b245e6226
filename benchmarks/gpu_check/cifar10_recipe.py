"""The CIFAR-10 recipe as numbers, and a training step of it that a CUDA graph can hold.

The numbers are those of configs/classification/recu_r20_cifar10.yaml, which a test holds them to. A step reads its
images, its place in the epoch and its learning rate from tensors that stay where they are, so that one graph serves the
whole run: it is captured once and replayed for every batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.graphs import LikeACapture
from esbnn_core import create_model
from esbnn_core.layers.base import BinaryLayer
from esbnn_core.layers.quantizers import ReCU
from esbnn_core.training.latent_clip import attach_latent_clip


@dataclass(frozen=True)
class Recipe:
    """The numbers of the recipe; a rehearsal has smaller ones.

    Attributes:
        epochs: of the whole run.
        batch: images of a step; images of an epoch that fill no batch are left out.
        rate: peak of the learning rate.
        momentum: of SGD.
        decay: of all weights.
        warm: epochs over which the rate rises from `start` times the peak.
        start: share of the peak.
        tau: ReCU's, of the first epoch, and what it goes to.
        pad: pixels of black around an image before it is cropped to its size.
        mean: of the normalisation, for values in [0, 1].
        std: of the normalisation.
    """

    epochs: int = 600
    batch: int = 256
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    warm: int = 4
    start: float = 0.2
    tau: tuple[float, float] = (0.85, 0.99)
    pad: int = 4
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def rate_of(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0: a rise, then half a cosine to 0."""
        if epoch < self.warm:
            return self.rate * (self.start + (1 - self.start) * epoch / self.warm)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (epoch - self.warm) / (self.epochs - self.warm)))

    def tau_of(self, epoch: int) -> float:
        """ReCU's tau of an epoch: A * exp(e / epochs) + B."""
        low, high = self.tau
        a = (high - low) / (math.e - 1)
        return a * math.exp(epoch / self.epochs) + low - a


NETWORKS: dict[str, dict[str, Any]] = {
    "recu_resnet20": {},
    "es_recu_resnet20": {"tau": 2, "groups": 1},
    "rep_recu_resnet20": {"tau": 2},
}
"""Networks of the recipe and their options, in the order in which they train."""


@dataclass
class Images:
    """A split on the device.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        labels: (N,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def to(self, device: str) -> "Images":
        """The same on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


class Draws:
    """The random numbers of an epoch, from (seed, epoch) alone, drawn on the CPU: the same on every device.

    Attributes:
        order: (images of the epoch,) places in the split.
        corner: (2, images), rows and columns of the crops in the padded image.
        mirrored: (images,) whether to mirror.
    """

    def __init__(self, number: int, recipe: Recipe, seed: int, epoch: int) -> None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        used = number // recipe.batch * recipe.batch
        self.order = torch.randperm(number, generator=generator)[:used]
        self.corner = torch.randint(2 * recipe.pad + 1, (2, used), generator=generator)
        self.mirrored = torch.rand(used, generator=generator) < 0.5


class Loop:
    """One network's training state, and a step that can be captured.

    Args:
        name: of NETWORKS.
        recipe: its numbers.
        images: the training split, on the device that trains.
        seed: of the weights and of every epoch.
    """

    def __init__(self, name: str, recipe: Recipe, images: Images, seed: int = 0) -> None:
        self.recipe, self.seed, self.device = recipe, seed, images.labels.device
        self.number, self.side = len(images.labels), images.pixels.shape[-1]
        self.labels, self.padded = images.labels, F.pad(images.pixels, (recipe.pad,) * 4)
        torch.manual_seed(seed)
        self.network: nn.Module = create_model(name, num_classes=10, **NETWORKS[name]).to(self.device).train()
        # the rate as a tensor and the fused step: a graph reads the rate anew at every replay
        rate = torch.tensor(recipe.rate, device=self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), rate, recipe.momentum, weight_decay=recipe.decay, fused=True
        )
        attach_latent_clip(self.optimizer, self.network)
        used = self.number // recipe.batch * recipe.batch
        self.order = torch.zeros(used, dtype=torch.int64, device=self.device)
        self.corner = torch.zeros(2, used, dtype=torch.int64, device=self.device)
        self.mirrored = torch.zeros(used, dtype=torch.bool, device=self.device)
        self.place = torch.zeros(recipe.batch, dtype=torch.int64, device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self.right = torch.zeros((), dtype=torch.int64, device=self.device)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (recipe.mean, recipe.std)
        )
        self.channels = torch.arange(images.pixels.shape[1], device=self.device)[None, :, None, None]
        self.across = torch.arange(self.side, device=self.device)
        self.taus = [
            module.quantizer.tau
            for module in self.network.modules()
            if isinstance(module, BinaryLayer) and isinstance(module.quantizer, ReCU)
        ]

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.number // self.recipe.batch

    def begin_epoch(self, epoch: int) -> None:
        """Put the epoch's draws, rate and tau into their tensors."""
        draws = Draws(self.number, self.recipe, self.seed, epoch)
        for there, here in ((self.order, draws.order), (self.corner, draws.corner), (self.mirrored, draws.mirrored)):
            there.copy_(here)
        self.place.copy_(torch.arange(self.recipe.batch))
        self.loss.zero_()
        self.right.zero_()
        for group in self.optimizer.param_groups:
            group["lr"].fill_(self.recipe.rate_of(epoch))
        for tau in self.taus:
            tau.fill_(self.recipe.tau_of(epoch))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,) at the present place of the epoch: cropped and mirrored by a gather."""
        places, corner = self.order[self.place], self.corner[:, self.place, None]
        across = torch.where(self.mirrored[self.place, None], self.side - 1 - self.across, self.across)
        rows, columns = corner[0] + self.across, corner[1] + across
        pixels = self.padded[places[:, None, None, None], self.channels, rows[:, None, :, None], columns[:, None, None]]
        return self.normalised(pixels), self.labels[places]

    def normalised(self, pixels: Tensor) -> Tensor:
        """float32 images of uint8 ones (N, 3, H, W)."""
        return (pixels.float() / 255 - self.mean) / self.std

    def step(self) -> None:
        """One training step, on to the next place; nothing in it waits for the device."""
        images, labels = self.batch()
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss.add_(loss.detach())
        self.right.add_((logits.detach().argmax(1) == labels).sum())
        self.place.add_(self.recipe.batch)

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes, gradients aside."""
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values() if "momentum_buffer" in state]
        return [*self.network.parameters(), *self.network.buffers(), *momenta, self.place, self.loss, self.right]

    def ready(self) -> None:
        """Give every parameter its momentum, 0 where there is none yet: the first step then does as any other.

        A step with weight decay from zero momentum is the first step of SGD, and a capture must not make tensors that
        later steps need.
        """
        for parameter in self.network.parameters():
            state = self.optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)

    def capture(self) -> Callable[[], None]:
        """A CUDA graph of a step; call it to replay. The state is what it was before. On the CPU, the step itself."""
        self.ready()
        kept = [tensor.detach().clone() for tensor in self.tensors()]
        self.place.copy_(torch.arange(self.recipe.batch))  # at an epoch's end there is no next batch
        if self.device.type == "cpu":
            with LikeACapture():
                self.step()
            self.put_back(kept)
            return self.step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
                self.place.sub_(self.recipe.batch)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.put_back(kept)
        return graph.replay

    @torch.no_grad()
    def put_back(self, kept: list[Tensor]) -> None:
        """Set all that a step changes to what it was."""
        for tensor, before in zip(self.tensors(), kept, strict=True):
            tensor.copy_(before)

    @torch.no_grad()
    def top1(self, images: Images) -> float:
        """Percent of right predictions on a split of the same device."""
        self.network.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for pixels, labels in zip(images.pixels.split(1000), images.labels.split(1000), strict=True):
            right += (self.network(self.normalised(pixels)).argmax(1) == labels).sum()
        self.network.train()
        return 100 * right.item() / len(images.labels)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides its epoch."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state; before capture."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], device=self.device)
