"""How fast is a packed detector on the CPU? ES-BiDet SSD300 against its latent network in torch (target C4).

python -m benchmarks.speed.detection [--threads 1] [--rounds 7] [--names es_bidet_ssd300 bidet_ssd300]

The network alone is timed, from images to logits and box codes, and the whole detection with its suppression. The
network alone is also timed in bfloat16 (packed: its real layers). torch runs eagerly; the weights are random, with
statistics of the images. Process time is measured, which leaves out the machine's other processes.
"""

import argparse
import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import tasks.detection.models.register  # noqa: F401  (registers our parts)
from benchmarks.command import positive, run_command
from benchmarks.timing import interleave, medians, write
from esbnn_core import count, pack_
from tasks.detection.mmdet.api import DetDataSample, build, load_config

SIDE = 300


@torch.no_grad()
def warmed(model: nn.Module) -> nn.Module:
    """The model in evaluation, with the statistics of two images of noise, so that no map has one sign everywhere."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative
    model.train()(50 * torch.randn(2, 3, SIDE, SIDE))
    return model.eval()


@torch.inference_mode()
def detect(model: nn.Module, x: torch.Tensor) -> Any:
    """Boxes, labels and scores of the images (N, 3, 300, 300), preprocessed."""
    shape = {"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0)}
    samples = [DetDataSample(metainfo=shape) for _ in x]
    return [sample.pred_instances for sample in model.predict(x, samples)]  # type: ignore[operator]


@torch.inference_mode()
def forward(model: nn.Module, x: torch.Tensor) -> Any:
    """Logits and box codes, by map."""
    return model(x)


def detector(name: str, rounds: int) -> dict[str, Any]:
    """One row, after a comparison of the packed detector's boxes with the latent one's."""
    torch.manual_seed(0)
    latent = warmed(build(load_config(f"configs/detection/mmdet/{name}.py").model))
    latent = latent.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = pack_(copy.deepcopy(latent)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = (50 * torch.randn(1, 3, SIDE, SIDE)).to(memory_format=torch.channels_last)
    want, got = detect(latent, x)[0], detect(packed, x)[0]
    equal = torch.equal(want.bboxes, got.bboxes) and torch.equal(want.labels, got.labels)
    contenders: dict[str, Callable[[], object]] = {}
    for kind, model in (("packed fp32", packed), ("torch fp32", latent)):
        contenders[kind] = functools.partial(forward, model, x)
        contenders[f"{kind} with suppression"] = functools.partial(detect, model, x)
        narrow = copy.deepcopy(model).bfloat16()
        contenders[kind.replace("fp32", "bf16")] = functools.partial(forward, narrow, x.bfloat16())
    us = interleave(contenders, rounds, clock=time.process_time)
    cost = count(latent, (3, SIDE, SIDE))
    return {
        "detector": name,
        "side": SIDE,
        "boxes": len(want.labels),
        "boxes equal": equal,
        "largest difference of scores": float((want.scores - got.scores).abs().max()) if equal else None,
        "bops": cost.bops,
        "flops": cost.flops,
        "us": us,
        "torch over packed": round(us["torch fp32"]["median"] / us["packed fp32"]["median"], 2),
        "torch over packed with suppression": round(
            us["torch fp32 with suppression"]["median"] / us["packed fp32 with suppression"]["median"], 2
        ),
    }


def main() -> None:
    """Run, print, and write benchmarks/results/detection.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--names", nargs="+", default=("es_bidet_ssd300", "bidet_ssd300"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.names:
        rows.append(detector(name, args.rounds))
        times = medians(rows[-1]["us"], 1000, 1)
        print(f"{name:18} ms: {times}  boxes equal: {rows[-1]['boxes equal']}", flush=True)
    settings = {"threads": args.threads, "batch": 1, "rounds": args.rounds, "clock": "process_time"}
    print(write("detection", {"settings": settings, "rows": rows}))


if __name__ == "__main__":
    run_command(main)
