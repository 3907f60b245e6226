"""How different are the copies of an expanded network? Equal and common bits of two copies, on every unit's input.

python -m benchmarks.evidence.copies RUN/weights.safetensors [--data data --dataset fashion_mnist_mini --image-size 28]

A unit of ES reads tau*g*C channels. Channels i and i + C come from the same filters and differ only in their affines
and thresholds. Equal bits: the share of pixels on which two copies agree; random signs do so on 0.5. Common bits: the
mutual information of the two, channel by channel. 0: one says nothing about the other. The nearer to the entropy of
a bit, at most 1, the less is new in the second, whether it repeats the first or is its opposite.
"""

import argparse
import itertools
import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.command import positive, run_command
from esbnn_core import load_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.units.conv import BinaryUnit
from tasks.classification.data import ClassificationDataModule


class Likeness(NamedTuple):
    """Of two copies, a mean over all pairs and channels.

    Attributes:
        equal: share of equal bits.
        common: mutual information in bits.
    """

    equal: float
    common: float


def likeness(one: Tensor, other: Tensor) -> Likeness:
    """Of bits (M, C) bool, of which a row is a pixel and a column a channel."""
    common = torch.zeros(one.shape[1], dtype=torch.float64)
    for first, second in itertools.product((one, ~one), (other, ~other)):
        both, alone = (first & second).double().mean(0), first.double().mean(0) * second.double().mean(0)
        common += torch.xlogy(both, both / alone.clamp_min(torch.finfo(alone.dtype).tiny))
    return Likeness(float((one == other).double().mean()), float(common.mean()) / math.log(2))


def measure_copies(model: nn.Module, images: Tensor) -> dict[str, Likeness]:
    """How alike the copies of each expanded unit's input are, by name.

    Args:
        model: latent, not packed; put into evaluation mode.
        images: (N, C, H, W), as the model takes them.

    Raises:
        InputError: the model has no expanded unit.
    """
    found: dict[str, Likeness] = {}

    def watch(name: str, sign: nn.Module, copies: int) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: tuple[Tensor, ...], signs: Tensor) -> None:
            bits = (signs > 0).unflatten(1, (copies, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)
            pairs = [likeness(bits[one], bits[other]) for one, other in itertools.combinations(range(copies), 2)]
            found[name] = _mean(pairs)

        return sign.register_forward_hook(hook)

    units = [(name, unit) for name, unit in model.named_modules() if isinstance(unit, BinaryUnit)]
    expanded = [(name, unit.conv.sign, unit.tau * unit.groups) for name, unit in units if unit.tau * unit.groups > 1]
    hooks = [watch(*each) for each in expanded]
    if not hooks:
        raise InputError(
            "the network must have a convolution unit of tau or groups above 1, got none: give a convolutional ES "
            "network that is not packed (weights.safetensors)"
        )
    with torch.inference_mode():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def _mean(rows: Collection[Likeness]) -> Likeness:
    return Likeness(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


def main() -> None:
    """Print the likeness of the copies of each unit of each file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.copies", description=__doc__)
    parser.add_argument("files", nargs="+", help="weights.safetensors of ES networks")
    parser.add_argument("--data", default="data", help="folder of the dataset")
    parser.add_argument("--dataset", default="fashion_mnist_mini", help="whose validation images are read")
    parser.add_argument("--image-size", type=positive, help="to scale them to, as in the run, default their own")
    options = parser.parse_args()
    networks = {file: load_checkpoint(file) for file in options.files}  # before the dataset is unpacked
    size = options.image_size
    data = ClassificationDataModule(dataset=options.dataset, root=options.data, image_size=size, batch_size=500)
    data.setup("validate")
    images, _ = next(iter(data.val_dataloader()))
    for file, network in networks.items():
        found = measure_copies(network, images)
        print(f"{file}  (equal bits, common bits)")
        for name, pair in (*found.items(), ("mean", _mean(found.values()))):
            print(f"  {name:24} {pair.equal:.3f}  {pair.common:.3f}")


if __name__ == "__main__":
    run_command(main)
