"""How fast is a whole packed network on the CPU? Packed against the same network in torch (target C3).

python -m benchmarks.speed.networks [--threads 1] [--batch 1] [--rounds 7] [--names reactnet_resnet18 ...] [--compile]

The packed network is timed as pack_ leaves it, with its real layers in bfloat16 (.bfloat16()), and compiled with frozen
constants, as the latent one. Writes networks.json, or networks_batch8.json for another batch.
"""

import argparse
import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.command import positive, run_command
from benchmarks.speed.parts import anneal_
from benchmarks.timing import frozen, interleave, medians, write
from esbnn_core import create_model, pack_

NAMES = ("reactnet_resnet18", "es_reactnet_resnet18", "bnext_tiny", "es_bnext_tiny")


class Narrow(nn.Module):
    """The network in bfloat16, its input too: what a user of torch would deploy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(x.bfloat16())
        return out


@torch.inference_mode()
def network(name: str, batch: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """One row, after a comparison of the packed network's logits with the latent one's."""
    torch.manual_seed(0)
    latent = anneal_(create_model(name)).eval()
    x = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
    latent = latent.to(memory_format=torch.channels_last)
    packed = pack_(copy.deepcopy(latent)).to(memory_format=torch.channels_last)
    equal = torch.equal(packed(x), latent(x))
    contenders: dict[str, Callable[[], object]] = {}
    for kind, whole in (("packed", packed), ("torch", latent)):
        narrow = Narrow(copy.deepcopy(whole))
        for dtype, model in (("fp32", whole), ("bf16", narrow)):
            contenders[f"{kind} {dtype}"] = functools.partial(model, x)
            if compiled:
                contenders[f"{kind} {dtype} frozen"] = frozen(model, x)
    return {"network": name, "logits equal": equal, "us": interleave(contenders, rounds)}


def main() -> None:
    """Run, print, and write benchmarks/results/networks.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile with freezing (minutes)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.names:
        rows.append(network(name, args.batch, args.rounds, args.compile))
        times = medians(rows[-1]["us"], 1000, 1)
        print(f"{name:22} ms: {times}  logits equal: {rows[-1]['logits equal']}", flush=True)
    settings = {"threads": args.threads, "batch": args.batch, "rounds": args.rounds, "compile": args.compile}
    name = "networks" if args.batch == 1 else f"networks_batch{args.batch}"
    print(write(name, {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    run_command(main)
