"""How different are the copies of an expanded network? The share of equal bits of two copies, on every unit's input.

python -m benchmarks.evidence.copies RUN/weights.safetensors [--data data --dataset fashion_mnist_mini]

A unit of ES reads tau*g*C channels. Channels i and i + C come from the same filters and differ only in their affines
and thresholds. 1.0: the copies carry nothing new, although the unit gave up filters for them. 0.5: they agree as
often as random signs.
"""

import argparse
import itertools

import torch
from torch import Tensor, nn

from benchmarks.command import run_command
from esbnn_core import load_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.units.conv import BinaryUnit
from tasks.classification.data import ClassificationDataModule


def measure_copy_agreement(model: nn.Module, images: Tensor) -> dict[str, float]:
    """The mean share of equal bits over all pairs of copies, for each expanded unit by name.

    Args:
        model: latent, not packed; put into evaluation mode.
        images: (N, C, H, W), as the model takes them.

    Raises:
        InputError: the model has no expanded unit.
    """
    found: dict[str, float] = {}

    def watch(name: str, sign: nn.Module, copies: int) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: tuple[Tensor, ...], signs: Tensor) -> None:
            bits = (signs > 0).unflatten(1, (copies, -1))
            pairs = itertools.combinations(range(copies), 2)
            shares = [(bits[:, one] == bits[:, other]).float().mean() for one, other in pairs]
            found[name] = float(torch.stack(shares).mean())

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


def main() -> None:
    """Print the agreement of each unit of each file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.copies", description=__doc__)
    parser.add_argument("files", nargs="+", help="weights.safetensors of ES networks")
    parser.add_argument("--data", default="data", help="folder of the dataset")
    parser.add_argument("--dataset", default="fashion_mnist_mini", help="whose validation images are read")
    options = parser.parse_args()
    networks = {file: load_checkpoint(file) for file in options.files}  # before the dataset is unpacked
    data = ClassificationDataModule(dataset=options.dataset, root=options.data, batch_size=500)
    data.setup("validate")
    images, _ = next(iter(data.val_dataloader()))
    for file, network in networks.items():
        found = measure_copy_agreement(network, images)
        print(file)
        for name, share in found.items():
            print(f"  {name:24} {share:.3f}")
        print(f"  {'mean':24} {sum(found.values()) / len(found):.3f}")


if __name__ == "__main__":
    run_command(main)
