"""--mode train: prints and runs the commands of the rows' recipes, one after another."""

import json
from collections.abc import Iterator, Sequence

import torch

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, write_atomically
from esbnn_core.lit.children import run_child
from tasks.reproduce.modes.stages import NOTE, Stage, plan_stages
from tasks.reproduce.tables.configs import read_config
from tasks.reproduce.tables.table import Row


def train_rows(
    rows: Sequence[Row], data: str, *, trainer: str | None, seeds: Sequence[int] | None, dry_run: bool
) -> None:
    """Print and run the commands of the rows. What is finished is left as it is.

    Args:
        rows: with recipes.
        data: --data.
        trainer: config of another machine than the recipes'.
        seeds: a run for each, None for the recipes' own.
        dry_run: print only.

    Raises:
        InputError: a row without a recipe, GPUs that are not there, a folder of another run, or a command that failed.
    """
    seen: set[str] = set()
    for row, seed in _pair_with_seeds(rows, seeds):
        # planned again before each command, because the one before it may have written what the next one starts from
        for number in range(len(row.before) + 1):
            stage = plan_stages(row, data, trainer=trainer, seed=seed)[number]
            if stage.run in seen:
                continue
            seen.add(stage.run)
            if stage.other_run:
                refusal = f"{stage.run} holds {stage.other_run}: move it away"
                if not dry_run:
                    raise InputError(refusal)
                print(f"# {refusal}")
            if stage.finished:
                print(f"# {stage.run} has weights.safetensors and is finished; remove the folder to train it again")
                if not dry_run:
                    continue
            print(stage.text, flush=True)
            if not dry_run:
                _check_gpus(stage, trainer or row.trainer)
                note = {"command": stage.text, "identity": stage.identity}
                write_atomically(ROOT / stage.run / NOTE, (json.dumps(note, indent=2) + "\n").encode())
                _run_stage(stage)


def _pair_with_seeds(rows: Sequence[Row], seeds: Sequence[int] | None) -> Iterator[tuple[Row, int | None]]:
    for row in rows:
        for seed in [None] if seeds is None else seeds:
            yield row, seed


def _check_gpus(stage: Stage, trainer: str) -> None:
    options = read_config(ROOT / trainer).get("trainer") or {}
    present = torch.cuda.device_count()
    asked = stage.devices // options.get("num_nodes", 1)
    if options.get("accelerator") == "gpu" and present < asked:
        smaller = ("configs/trainer/gpu1.yaml or " if present else "") + "configs/trainer/cpu.yaml"
        raise InputError(
            f"the recipe of {stage.run} is written for {asked} GPU{'' if asked == 1 else 's'} a machine and torch sees "
            f"{present}: give --trainer {smaller}, which keeps the global batch"
        )


def _run_stage(stage: Stage) -> None:
    code = run_child(stage.words[1:], cwd=ROOT)
    if code:
        raise InputError(
            f"the run into {stage.run} ended with exit code {code} after the messages above: fix the cause and give "
            f"the same command again, which goes on from its last checkpoint"
        )
