"""How fast is one packed denoising step on the CPU? BI-DiffSR's UNet and ES-BI-DiffSR's at 128x128 (target C4).

python -m benchmarks.speed.super_resolution [--threads 1] [--rounds 5] [--side 128] [--taus 1 2]

The UNet alone is timed, one step of one image: the packed network against its latent one in torch, both eager. Each is
also timed in bfloat16 (packed: its real layers and what flows between the units). The weights are random. Process time
is measured, which leaves out the machine's other processes.
"""

import argparse
import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.command import positive, run_command
from benchmarks.timing import interleave, medians, write
from esbnn_core import pack_
from esbnn_core.units.timestep import TimestepUnit
from tasks.super_resolution.unet import BIDiffSRUNet

TIMESTEP = 1000


def build_unet(tau: int) -> BIDiffSRUNet:
    """The UNet of official widths, with sums scaled so that the maps stay in range, and shifts that flip some signs."""
    torch.manual_seed(0)
    unet = BIDiffSRUNet(tau=tau).eval()
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, TimestepUnit):
                module.conv.weight.mul_(0.5e3 / module.conv.weight[0].numel() ** 0.5)
                assert module.shift is not None
                for shift in module.shift.shifts:
                    shift.normal_(0.2, 0.1)
    return unet


@torch.inference_mode()
def step(unet: BIDiffSRUNet, sample: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """The noise (1, 3, side, side)."""
    noise: torch.Tensor = unet(sample, TIMESTEP, condition).sample
    return noise


def row(tau: int, side: int, rounds: int) -> dict[str, Any]:
    """One row, after a comparison of the packed network's noise with the latent one's."""
    latent = build_unet(tau).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = pack_(copy.deepcopy(latent)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sample, condition = torch.randn(1, 3, side, side), torch.rand(1, 3, side, side)
    maps = [t.to(memory_format=torch.channels_last) for t in (sample, condition)]
    want, got = step(latent, *maps), step(packed, *maps)
    contenders: dict[str, Callable[[], object]] = {}
    for kind, model in (("packed fp32", packed), ("torch fp32", latent)):
        contenders[kind] = functools.partial(step, model, *maps)
        narrow = copy.deepcopy(model).bfloat16()
        contenders[kind.replace("fp32", "bf16")] = functools.partial(step, narrow, *(t.bfloat16() for t in maps))
    us = interleave(contenders, rounds, clock=time.process_time)
    return {
        "network": "bi_diffsr" if tau == 1 else "es_bi_diffsr",
        "tau": tau,
        "side": side,
        "largest relative difference": float((want - got).abs().max() / want.abs().max()),
        "us": us,
        "torch fp32 over packed fp32": round(us["torch fp32"]["median"] / us["packed fp32"]["median"], 2),
        "torch fp32 over packed bf16": round(us["torch fp32"]["median"] / us["packed bf16"]["median"], 2),
        "torch bf16 over packed bf16": round(us["torch bf16"]["median"] / us["packed bf16"]["median"], 2),
    }


def main() -> None:
    """Run, print, and write benchmarks/results/super_resolution.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--side", type=positive, default=128)
    parser.add_argument("--taus", type=positive, nargs="+", default=(1, 2))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for tau in args.taus:
        rows.append(row(tau, args.side, args.rounds))
        times, difference = medians(rows[-1]["us"], 1000, 0), rows[-1]["largest relative difference"]
        print(f"{rows[-1]['network']:14} ms: {times}  relative {difference:.1e}", flush=True)
    settings = {"threads": args.threads, "batch": 1, "rounds": args.rounds, "clock": "process_time"}
    print(write("super_resolution", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    run_command(main)
