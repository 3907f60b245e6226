"""How far do binarize_, expand_ and pack_ get on networks that were not written for them?

python -m benchmarks.coverage [--tasks] [--names resnet50 timm/dla34 ...] [--tau 2] [--groups 1] [--keep]

Each network of torchvision and timm goes through the verbs with fresh weights at a small input; with `--tasks` those of
benchmarks/coverage_tasks.py, which are not classifiers. `--keep` writes benchmarks/results/coverage.json or
coverage_tasks.json, from which benchmarks.report makes docs/reports/networks-coverage.md; with `--names` it takes over
the rows of these networks alone.
"""

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from benchmarks.command import positive, run_command
from benchmarks.coverage_tasks import TASKS, tensors_of
from benchmarks.timing import RESULTS, write
from esbnn_core import ESConfig, InputError, binarize_, count, expand_, pack_, plan_expansion
from esbnn_core.counting import Count
from esbnn_core.transforms.expand_plan import ExpansionPlan

TORCHVISION = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "squeezenet1_1"),
    *("densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny"),
    *("vit_b_16", "swin_t"),
)
TIMM = (
    *("resnet50d", "seresnet50", "ecaresnet26t", "efficientnet_b0", "mobilenetv3_large_100", "mobilenetv4_conv_small"),
    *("lcnet_050", "ghostnet_100", "regnety_016", "convnext_tiny", "convnextv2_nano", "densenet121", "dla34"),
    *("hrnet_w18_small", "res2net50_26w_4s", "cspdarknet53", "repvgg_a0", "vovnet39a", "hgnetv2_b0", "poolformer_s12"),
    *("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"),
)
SIDES = {"inception_v3": 128, "alexnet": 64, "squeezenet1_1": 64, "vit_b_16": 224, "swin_t": 64}
"""Side of the input where 64 pixels are too few, or the network has a size of its own."""


@dataclass(frozen=True)
class Coverage:
    """What the verbs make of one network.

    Attributes:
        network: torchvision's name, or timm's after "timm/".
        binary: share of the multiply-accumulates that become binary, 0 to 1.
        expanded: share of the binary ones that expand_ takes.
        ops: of the binary network, and of the expanded one.
        equal: whether binary and real multiply-accumulates and 1-bit weights are the same after expand_.
        packed: whether the packed network gives the latent one's outputs, bit for bit.
        trains: whether a training step runs and every gradient is finite.
        exports: whether torch.export takes the packed network; None if it does not take the real one either.
        note: reasons: of a verb's refusal, or the first of the layers that stay plain.
    """

    network: str
    binary: float = 0.0
    expanded: float = 0.0
    ops: tuple[float, float] = (0.0, 0.0)
    equal: bool = False
    packed: bool = False
    trains: bool = False
    exports: bool | None = False
    note: str = ""


def build(name: str) -> tuple[nn.Module, int]:
    """A network by name with 10 classes, and the side of its input."""
    library, _, bare = name.rpartition("/")
    side = 224 if "patch" in bare else SIDES.get(bare, 64)
    if library == "timm":
        return timm.create_model(bare, num_classes=10), side
    options = {"aux_logits": False} if bare in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(bare, num_classes=10, **options), side


def cover(name: str, config: ESConfig, binarize: Callable[[nn.Module], nn.Module] = binarize_) -> Coverage:
    """Put one network through the verbs.

    Args:
        name: as build.
        config: of expand_.
        binarize: the first verb.
    """
    torch.manual_seed(0)
    if name in TASKS:
        model, images, one = TASKS[name].build(), TASKS[name].example(2), TASKS[name].example(1)
        given: dict[str, Any] = {"example": images}
        counted: dict[str, Any] = {"example": one}
    else:
        model, side = build(name)
        images, given, counted = (torch.rand(2, 3, side, side) - 0.5,), {}, {"input_size": (3, side, side)}
    real = copy.deepcopy(model)
    try:
        binarize(model, **given)
        before = count(model, **counted)
    except InputError as error:
        return Coverage(name, note=f"binarize_: {error}")
    found = {"network": name, "binary": before.bops / (before.bops + before.flops)}
    plan, note = ExpansionPlan((), {}), ""
    try:
        plan = plan_expansion(model, config, **given)
        expand_(model, config, **given)
        note = "; ".join(f"{layer}: {reason}" for layer, reason in list(plan.left.items())[:1])
    except InputError as error:
        note = f"expand_: {error}"
    try:
        after = count(model, **counted)
    except InputError as error:
        return Coverage(**found, expanded=_share(before, plan), note=f"the expanded network: {error}")
    return Coverage(
        **found,
        expanded=_share(before, plan),
        ops=(before.ops, after.ops),
        equal=(before.bops, before.flops, before.binary_params) == (after.bops, after.flops, after.binary_params),
        note=note,
        **_run(name, model, real, images),
    )


def _share(before: Count, plan: ExpansionPlan) -> float:
    """Share of the binary operations in the layers that the plan expands."""
    taken = set(plan.expanded)

    def inside(name: str) -> bool:  # the layer, or the unit that holds it
        return name in taken or any(name.startswith(f"{whole}.") for whole in taken)

    return sum(row.macs for row in before.layers if row.binary and row.counted and inside(row.name)) / before.bops


def _run(name: str, model: nn.Module, real: nn.Module, images: tuple[Any, ...]) -> dict[str, bool | None]:
    """Train a step, pack and export."""
    model.train()
    loss = TASKS[name].loss(model, images) if name in TASKS else model(*images).square().mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    done: dict[str, bool | None] = {"trains": bool(gradients) and all(bool(torch.isfinite(g).all()) for g in gradients)}
    model.zero_grad()
    with torch.no_grad():
        latent = tensors_of(model.eval()(*images))
        packed = pack_(copy.deepcopy(model))
        outputs = tensors_of(packed(*images))
        done["packed"] = len(outputs) == len(latent) and all(map(torch.equal, outputs, latent))
        done["exports"] = _exports(packed, images) or (False if _exports(real.eval(), images) else None)
    return done


def _exports(model: nn.Module, images: tuple[Any, ...]) -> bool:
    try:
        torch.export.export(model, images)
    except Exception:  # what a tracer raises on somebody's forward may be anything
        return False
    return True


def main() -> None:
    """Run, print, and with --keep write the json of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", action="store_true", help="networks that are not classifiers")
    parser.add_argument("--names", nargs="+", help="some of them")
    parser.add_argument("--tau", type=positive, default=2)
    parser.add_argument("--groups", type=positive, default=1)
    parser.add_argument("--keep", action="store_true", help="write the json of results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    table = "coverage_tasks" if args.tasks else "coverage"
    known = list(TASKS) if args.tasks else [*TORCHVISION, *(f"timm/{name}" for name in TIMM)]
    for name in args.names or known:
        row = cover(name, ESConfig(args.tau, args.groups))
        rows.append(row)
        marks = " ".join(key for key in ("equal", "packed", "trains", "exports") if getattr(row, key))
        print(
            f"{name}: binary {row.binary:.3f}, expanded {row.expanded:.3f}, {marks or 'nothing'}; {row.note}",
            flush=True,
        )
    good = sum(row.expanded >= 0.95 for row in rows)
    print(f"{good} of {len(rows)} networks have 95 % of their binary operations expanded")
    if args.keep:
        done = {row.network: asdict(row) for row in rows}
        if args.names:
            record = json.loads((RESULTS / f"{table}.json").read_text())
            if (record["tau"], record["groups"]) != (args.tau, args.groups):
                parser.error(f"{table}.json has tau={record['tau']}, groups={record['groups']}: leave out --names")
            done = {**{row["network"]: row for row in record["rows"]}, **done}
        print(write(table, {"tau": args.tau, "groups": args.groups, "rows": list(done.values())}))


if __name__ == "__main__":
    run_command(main)
