"""Which path through the real-valued levels and which rule for copies learn faster? Small ES-BI-DiffSR on manga.

python -m benchmarks.evidence.copy_paths [--steps 500] [--seeds 0 1]

Each network (16 channels, one block a level) learns from 32x32 patches of the two pages in tests/data, with the same
patches, noise and timesteps. The command prints its L1 on the noise of 160 other patches of these pages. This shows
which network learns faster in minutes, and nothing about long training.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import positive, run_command
from tasks.super_resolution.data import SRDataModule
from tasks.super_resolution.schedulers import default_scheduler
from tasks.super_resolution.unet import BIDiffSRUNet

NETWORKS: dict[str, dict[str, Any]] = {
    "base": {},
    "slice": {"tau": 2},
    "carry": {"tau": 2, "real_path": "carry"},
    "slice mix": {"tau": 2, "copy_rule": "mix"},
}
SCHEDULE = default_scheduler()


def load_batches(seed: int, number: int) -> list[dict[str, Tensor]]:
    """The first batches of eight patches of an epoch."""
    data = SRDataModule("tests/data/sr", ["manga-like-train"], ["Set5"], patch=32, repeat=4000, batch_size=8, seed=seed)
    data.setup("fit")
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(number)]


def compute_loss(unet: BIDiffSRUNet, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """L1 on the noise at timesteps of the generator."""
    noise = torch.randn(batch["hr"].shape, generator=generator)
    t = torch.randint(2000, (len(noise),), generator=generator)
    noisy = SCHEDULE.add_noise(batch["hr"], noise, t)
    return (unet(noisy, t, batch["condition"]).sample - noise).abs().mean()


def train(options: dict[str, Any], data: list[dict[str, Tensor]], seed: int) -> BIDiffSRUNet:
    """Train one network, one step a batch; it is returned in evaluation mode."""
    torch.manual_seed(seed)
    unet = BIDiffSRUNet(inner_channels=16, norm_groups=4, res_blocks=1, dropout=0.0, **options)
    optimizer = torch.optim.Adam(unet.parameters(), 1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data))
    generator = torch.Generator().manual_seed(seed)
    for batch in data:
        optimizer.zero_grad()
        compute_loss(unet, batch, generator).backward()
        optimizer.step()
        schedule.step()
    return unet.eval()


def main() -> None:
    """Train each network with each seed and print its loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=500, help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1), help="one run each")
    args = parser.parse_args()
    held_out = load_batches(99, 20)
    for seed in args.seeds:
        data = load_batches(seed, args.steps)
        for name, options in NETWORKS.items():
            unet = train(options, data, seed)
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                mean = sum(compute_loss(unet, batch, generator).item() for batch in held_out) / len(held_out)
            print(f"seed {seed}  {name:10} {mean:.4f}", flush=True)


if __name__ == "__main__":
    run_command(main)
