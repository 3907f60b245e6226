"""How far do binarize_, expand_ and pack_ get on networks that were not written for them?

python -m benchmarks.coverage [--names resnet50 timm/dla34 ...] [--tau 2] [--groups 1] [--keep]

Each network of torchvision and timm goes through the verbs with fresh weights at a small input. `--keep` writes
benchmarks/results/coverage.json, from which benchmarks.report makes docs/reports/networks-coverage.md.
"""

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.command import positive, run_command
from benchmarks.timing import write
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
        exports: whether torch.export takes the packed network.
        note: reasons: of a verb's refusal, or the first of the layers that stay plain.
    """

    network: str
    binary: float = 0.0
    expanded: float = 0.0
    ops: tuple[float, float] = (0.0, 0.0)
    equal: bool = False
    packed: bool = False
    trains: bool = False
    exports: bool = False
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
    model, side = build(name)
    size = (3, side, side)
    try:
        binarize(model)
        before = count(model, size)
    except InputError as error:
        return Coverage(name, note=f"binarize_: {error}")
    found = {"network": name, "binary": before.bops / (before.bops + before.flops)}
    plan, note = ExpansionPlan((), {}), ""
    try:
        plan = plan_expansion(model, config)
        expand_(model, config)
        note = "; ".join(f"{layer}: {reason}" for layer, reason in list(plan.left.items())[:1])
    except InputError as error:
        note = f"expand_: {error}"
    try:
        after = count(model, size)
    except InputError as error:
        return Coverage(**found, expanded=_share(before, plan), note=f"the expanded network: {error}")
    return Coverage(
        **found,
        expanded=_share(before, plan),
        ops=(before.ops, after.ops),
        equal=(before.bops, before.flops, before.binary_params) == (after.bops, after.flops, after.binary_params),
        note=note,
        **_run(model, torch.rand(2, *size) - 0.5),
    )


def _share(before: Count, plan: ExpansionPlan) -> float:
    """Share of the binary operations in the layers that the plan expands."""
    taken = set(plan.expanded)

    def inside(name: str) -> bool:  # the layer, or the unit that holds it
        return name in taken or any(name.startswith(f"{whole}.") for whole in taken)

    return sum(row.macs for row in before.layers if row.binary and row.counted and inside(row.name)) / before.bops


def _run(model: nn.Module, images: Tensor) -> dict[str, bool]:
    """Train a step, pack and export."""
    model.train()(images).square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    done = {"trains": bool(gradients) and all(bool(torch.isfinite(grad).all()) for grad in gradients)}
    model.zero_grad()
    with torch.no_grad():
        latent = model.eval()(images)
        packed = pack_(copy.deepcopy(model))
        done["packed"] = torch.equal(packed(images), latent)
        try:
            torch.export.export(packed, (images,))
            done["exports"] = True
        except Exception:  # what a tracer raises on somebody's forward may be anything
            done["exports"] = False
    return done


def main() -> None:
    """Run, print, and with --keep write benchmarks/results/coverage.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=[*TORCHVISION, *(f"timm/{name}" for name in TIMM)])
    parser.add_argument("--tau", type=positive, default=2)
    parser.add_argument("--groups", type=positive, default=1)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/coverage.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in args.names:
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
        print(write("coverage", {"tau": args.tau, "groups": args.groups, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    run_command(main)
