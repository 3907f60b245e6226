"""How different are an expanded network's copies? On every unit's input, the share of bits that two copies have alike.

python -m benchmarks.evidence.copies RUN/weights.safetensors [--data data --dataset fashion_mnist_mini]

A unit of ES reads tau*g*C channels, where channels i and i + C come from the same filters and differ by their own
affines and thresholds alone. 1.0: the copies carry nothing new, and the unit has given filters away for it; 0.5: they
agree as often as signs drawn by chance.
"""

import argparse
import itertools

import torch
from torch import Tensor, nn

from esbnn_core import load_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.units.conv import BinaryUnit
from tasks.classification.data import ClassificationDataModule


def copy_agreement(model: nn.Module, images: Tensor) -> dict[str, float]:
    """The mean share of equal bits over all pairs of copies, for each expanded unit, by its name.

    Args:
        model: latent, not packed; put into evaluation mode. images: (N, C, H, W), what the model takes.

    Raises:
        InputError: the model has no expanded unit.
    """
    found: dict[str, float] = {}

    def watch(name: str, sign: nn.Module, copies: int) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: tuple[Tensor, ...], signs: Tensor) -> None:
            bits = (signs > 0).unflatten(1, (copies, -1))
            pairs = itertools.combinations(range(copies), 2)
            alike = [(bits[:, one] == bits[:, other]).float().mean() for one, other in pairs]
            found[name] = float(torch.stack(alike).mean())

        return sign.register_forward_hook(hook)

    units = [(name, unit) for name, unit in model.named_modules() if isinstance(unit, BinaryUnit)]
    wide = [(name, unit.conv.sign, unit.tau * unit.groups) for name, unit in units if unit.tau * unit.groups > 1]
    hooks = [watch(*each) for each in wide]
    if not hooks:
        raise InputError(
            "the network has no expanded convolution unit, one of tau or groups above 1 was expected: give a file of a "
            "convolutional ES network that is not packed (weights.safetensors)"
        )
    with torch.inference_mode():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.copies", description=__doc__)
    parser.add_argument("files", nargs="+", help="weights.safetensors of ES networks")
    parser.add_argument("--data", default="data")
    parser.add_argument("--dataset", default="fashion_mnist_mini")
    options = parser.parse_args()
    data = ClassificationDataModule(dataset=options.dataset, root=options.data, batch_size=500)
    data.setup("validate")
    images, _ = next(iter(data.val_dataloader()))
    for file in options.files:
        found = copy_agreement(load_checkpoint(file), images)
        print(file)
        for name, share in found.items():
            print(f"  {name:24} {share:.3f}")
        print(f"  {'mean':24} {sum(found.values()) / len(found):.3f}")


if __name__ == "__main__":
    main()
