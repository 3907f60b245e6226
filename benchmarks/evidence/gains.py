"""What ES is worth: the table in docs/reports/evidence.md and the picture in the README.

It has every comparison of configs/proxy that was named before its runs, on five seeds that chose nothing, but for bases
that are known to be weaker. What is said of each follows from its rule, the same in all: ES gains where the 95 %
interval of its difference from the base lies on the better side of 0, costs where it lies on the other, else it is
undecided.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from tasks.reproduce.modes.proxy_results import ProxyResult, compute_half_width
from tasks.reproduce.report.markdown import render_markdown_table
from tasks.reproduce.report.pictures import COLOURS, OTHERS, encode_png

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
    Decision("ResNet-20", f"{LONG}, one rate", "deep_long"),
    Decision("ResNet-8", f"{LONG}, one rate", "start_long", "es apart", "base apart"),
    Decision("ResNet-8", f"{LONG}, best rates of small runs", "resnet8_long"),
    Decision("ResNet-8", f"{LONG}, best rates", "resnet8_long_best"),
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


class Gain(NamedTuple):
    """What a comparison found: its differences seed by seed, their mean, half of the interval's width, the verdict."""

    decision: Decision
    metric: str
    found: list[float]
    mean: float
    half: float
    said: str


def list_gains(results: Sequence[ProxyResult]) -> list[Gain]:
    """The comparisons of DECISIONS that have all of their results, in that order."""
    by_name = {(result.system, result.variant): result for result in results}
    gains = []
    for decision in DECISIONS:
        es, base = (by_name.get((decision.system, name)) for name in (decision.es, decision.base))
        if es is None or base is None:
            continue
        found = es.differences(base)
        if len(found) < SEEDS:  # the rule is about all of them
            continue
        mean, half = sum(found) / len(found), compute_half_width(found)
        gains.append(Gain(decision, es.metric, found, mean, half, verdict_of(es.metric, mean, half)))
    return gains


def render_gains(results: Sequence[ProxyResult]) -> str:
    """The table in Markdown; a comparison without all of its results has no row."""
    lines = []
    for gain in list_gains(results):
        ahead = sum(value < 0 if gain.metric == "loss" else value > 0 for value in gain.found)
        shown = f"{gain.mean:+.2f} ± {gain.half:.2f} {UNITS[gain.metric]}"
        if gain.said != "undecided":
            shown = f"**{shown}**"
        lines.append([gain.decision.network, gain.decision.training, shown, f"{ahead} of {len(gain.found)}", gain.said])
    return render_markdown_table(["network", "trained on", "ES minus base", "seeds with ES ahead", "ES"], lines)


def draw_gains(results: Sequence[ProxyResult]) -> bytes:
    """The same lines as a PNG, a panel for each metric, with better to the right in all of them."""
    gains = list_gains(results)
    panels = [part for metric in UNITS if (part := [gain for gain in gains if gain.metric == metric])]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(9.2, 0.9 + 0.26 * len(gains) + 0.55 * len(panels)),
        height_ratios=[len(part) + 0.6 for part in panels],
        layout="constrained",
        squeeze=False,
    )
    for panel, part in zip(axes[:, 0], panels, strict=True):
        _draw_panel(panel, part)
    figure.suptitle(
        "ES against the base at equal operations: mean of five seeds, 95 % interval. Right of the line ES is better.",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return encode_png(figure)


def _draw_panel(panel: Any, gains: Sequence[Gain]) -> None:
    colours = {"gains": OTHERS[0], "undecided": COLOURS["base"], "costs": COLOURS["es"]}
    reach = max(abs(value) for gain in gains for value in (gain.mean - gain.half, gain.mean + gain.half))
    for place, gain in enumerate(gains):
        style = {"color": colours[gain.said], "capsize": 3, "markersize": 5, "linewidth": 2}
        panel.errorbar([gain.mean], [place], xerr=[gain.half], fmt="D", **style)
        panel.text(1.01, place, gain.said, transform=panel.get_yaxis_transform(), va="center", fontsize=7.5)
    panel.axvline(0, color="black", linewidth=0.8)
    names = [f"{gain.decision.network}: {gain.decision.training}" for gain in gains]
    panel.set_yticks(range(len(gains)), names, fontsize=7.5)
    panel.set_ylim(len(gains) - 0.4, -0.6)
    panel.set_xlim(*((-1.1 * reach, 1.1 * reach)[:: -1 if gains[0].metric == "loss" else 1]))
    panel.set_xlabel(UNITS[gains[0].metric] + (" of top-1" if gains[0].metric == "top1" else ""), fontsize=8)
    panel.tick_params(axis="x", labelsize=7.5)
    panel.grid(axis="x", alpha=0.3)
