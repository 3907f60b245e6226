"""Answer on a GPU what nobody could answer without one: stages with limits, the most telling first.

python -m benchmarks.gpu_check [--stages operators sums ...] [--seconds 600] [--out results/gpu] [--resume]
    [--rehearse] [--data data]

Each stage is a process of its own. Its results are in OUT/STAGE.json as they come, its output in OUT/STAGE.log, and
how all ended in OUT/index.json. --rehearse runs everything on the CPU with tiny sizes: its times mean nothing.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from benchmarks.command import run_command
from benchmarks.gpu_check.runner import Stage, run_stages, stage_words
from esbnn_core.errors import InputError, check_choice, check_output_folder

QUESTIONS: dict[str, tuple[str, float]] = {
    "operators": ("does every operator give naive's bits?", 75),
    "sums": ("are the latent layers' sums exact on cuDNN, and the packed ones?", 40),
    "blocks": ("how fast is a block, and a convolution alone (G1, G2, G3)?", 120),
    "networks": ("do whole networks agree, and how fast are they under CUDA graphs?", 110),
    "training": ("are the steps of training on bits right, what does it keep, how long is one (G4, G5)?", 85),
    "suite": ("does the test suite of the kernels pass?", 70),
    "cifar10": ("how long is an epoch of the CIFAR-10 recipe, and how far does it train?", 3600),
}
"""What each stage answers, and its limit in seconds, in the order in which they run."""
ON_REQUEST = {"sanitizer": ("does compute-sanitizer find a wrong access or a race?", 240.0)}
"""Stages that run only where --stages names them: they take long."""
REHEARSAL = 120.0
"""Limit of each stage of a rehearsal, in seconds: a loaded CPU is slow."""


def make_stages(names: list[str], data: str, rehearse: bool) -> list[Stage]:
    """The stages of some names, in the order of QUESTIONS.

    Raises:
        InputError: an unknown name.
    """
    known = {**QUESTIONS, **ON_REQUEST}
    for name in names:
        check_choice("--stages", name, known)
    return [
        Stage(name, answers, REHEARSAL if rehearse else limit, stage_words(name, data, rehearse))
        for name, (answers, limit) in known.items()
        if name in names
    ]


def main() -> None:
    """Run the stages; exits with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=list(QUESTIONS), metavar="STAGE")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all stages together")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the results")
    parser.add_argument("--data", default="data", help="folder that has cifar-10-batches-py")
    parser.add_argument("--resume", action="store_true", help="skip what an earlier run in --out has done")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes; times mean nothing")
    args = parser.parse_args()
    if not 0 < args.seconds < float("inf"):
        raise InputError(f"--seconds must be a number above 0, got {args.seconds}")
    stages = make_stages(args.stages, args.data, args.rehearse)
    check_output_folder(args.out, "--out")
    if not args.rehearse and not torch.cuda.is_available():
        raise InputError(
            "make gpu-check needs a GPU, torch sees none here: run it where there is one, or --rehearse it"
        )
    # a terminated run ends its stage too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = {"rehearsal": args.rehearse, "seconds": args.seconds, "data": args.data}
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the stages: what asks torch for a GPU finds none
        print("rehearsal on the CPU: whether every stage runs is what it shows, its times mean nothing", flush=True)
    failed = run_stages(stages, args.out, args.seconds, settings, args.resume)
    print(args.out / "index.json")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_command(main)
