"""The table of what ES is worth, in the README and in docs/reports/evidence.md.

It has every comparison of configs/proxy that was named before its runs, on five seeds that chose nothing, but for bases
that are known to be weaker. What is said of each follows from its rule, the same in all: ES gains where the 95 %
interval of its difference from the base lies on the better side of 0, costs where it lies on the other, else it is
undecided.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tasks.reproduce.modes.proxy_results import ProxyResult, compute_half_width
from tasks.reproduce.report.markdown import render_markdown_table

UNITS = {"top1": "points", "psnr": "dB", "loss": "of the loss, less is better"}
LONG, SMALL = "all of CIFAR-10, 6 epochs", "10,000 of CIFAR-10 at 16x16, 8 epochs"
SEEDS = 5
"""That decide, in every rule."""


class Decision(NamedTuple):
    """A comparison on seeds that decide: of which network, how it was trained, and the two variants of a system."""

    network: str
    training: str
    system: str
    es: str = "es"
    base: str = "base"


DECISIONS = (
    Decision("ResNet-20", LONG, "deep_long"),
    Decision("ResNet-8", LONG, "start_long", "es apart", "base apart"),
    Decision("ResNet-8", f"{LONG}, best rates of small runs", "resnet8_long"),
    Decision("ResNet-20", f"{SMALL}, one rate", "deep_best"),
    Decision("ResNet-20", f"{SMALL}, best rates", "resnet20_best"),
    Decision("ResNet-8", f"{SMALL}, best rates", "resnet8_best"),
    Decision("ResNet-8", f"{SMALL}, best rates, other seeds", "taught_resnet8"),
    Decision("ResNet-8", f"{SMALL}, best recipes", "recipe_resnet8_best", base="base affine rate 5"),
    Decision("ResNet-8", f"{SMALL}, a teacher", "taught_resnet8", "es taught", "base taught"),
    Decision("ResNet-8, twice as wide", f"{SMALL}, best rates", "width_resnet8_best"),
    Decision("ResNet-8, ES with 2 groups", f"{SMALL}, one rate", "groups_small", "es g=2"),
    Decision("ResNet-8, 2 groups on both sides", f"{SMALL}, one rate", "groups_small", "es g=2", "g=2"),
    Decision("ResNet-20, ES with 2 groups", f"{SMALL}, one rate", "deep_best", "es g=2"),
    Decision("BNext, small", "10,000 of CIFAR-10 at 16x16, 6 epochs, best rates", "bnext_best"),
    Decision("BinaryViT, small", "10,000 of CIFAR-10 at 32x32, 5 epochs, best rates", "binaryvit_best"),
    Decision("BiDet SSD300", "120 images of VOC2007, 60 steps, best rates", "bidet_best"),
    Decision("BI-DiffSR, a quarter as wide", "8 pages of manga, 600 steps, best rates", "bidiffsr_best"),
)
"""Of the best recipes the base is the one against which the interval reaches further down."""


def verdict_of(metric: str, mean: float, half: float) -> str:
    """What the rule says of a mean difference and half the width of its interval."""
    better = -mean if metric == "loss" else mean
    if better - half > 0:
        return "gains"
    return "costs" if better + half < 0 else "undecided"


def render_gains(results: Sequence[ProxyResult]) -> str:
    """The table in Markdown; a comparison without all of its results has no row."""
    by_name = {(result.system, result.variant): result for result in results}
    lines = []
    for decision in DECISIONS:
        es, base = (by_name.get((decision.system, name)) for name in (decision.es, decision.base))
        if es is None or base is None:
            continue
        found = es.differences(base)
        if len(found) < SEEDS:  # the rule is about all of them
            continue
        mean, half = sum(found) / len(found), compute_half_width(found)
        ahead = sum(value < 0 if es.metric == "loss" else value > 0 for value in found)
        said = verdict_of(es.metric, mean, half)
        shown = f"{mean:+.2f} ± {half:.2f} {UNITS[es.metric]}"
        lines.append(
            [
                decision.network,
                decision.training,
                shown if said == "undecided" else f"**{shown}**",
                f"{ahead} of {len(found)}",
                said,
            ]
        )
    return render_markdown_table(["network", "trained on", "ES minus base", "seeds with ES ahead", "ES"], lines)
