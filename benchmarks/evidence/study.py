"""The picture of the study in docs/reports/evidence.md: what was chosen among, and what the chosen ones are worth.

The systems are `start`, in which each side's start is chosen, and `start_long`, in which other seeds decide
(configs/proxy).
"""

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from benchmarks.evidence.curves import compute_interval
from tasks.reproduce.modes.proxy_results import ProxyResult, find_base
from tasks.reproduce.report.pictures import COLOURS, OTHERS, encode_png

CHOICE, DECISION = "start", "start_long"
PAIRS = (("es apart", "base apart"), ("es", "base"), ("base apart", "base"), ("es apart", "es"))
"""Variants of the decision that are compared."""
BESIDE = {
    "start_groups": "ResNet-8, seeds of the lead",
    "groups_small": "ResNet-8, fresh seeds",
    "start_narrow": "ResNet-8, half the width",
    "deep_best": "ResNet-20, fresh seeds",
    "deep_long": "ResNet-20, all at 32x32",
    "resnet8_best": "ResNet-8, best rates",
    "resnet8_long": "ResNet-8, these rates, all at 32x32",
    "resnet8_long_best": "ResNet-8, best rates there, all at 32x32",
    "width_resnet8_best": "ResNet-8, twice the width, best rates",
    "recipe_resnet8_best": "ResNet-8, best recipes",
    "taught_resnet8": "ResNet-8, best rates anew",
    "resnet20_best": "ResNet-20, best rates",
    "bnext_best": "BNext, fresh seeds",
    "binaryvit_best": "BinaryViT, 10,000 at 32x32",
}
"""Systems of evidence-depth.md, -recipes.md and -families.md in docs/reports whose seeds chose nothing."""


def side_of(result: ProxyResult) -> str:
    """Which colour a variant has: that of the base, of ES, or another."""
    first = result.variant.split()[0]
    return first if first in ("base", "es") else "other"


def draw_study(results: Sequence[ProxyResult]) -> bytes:
    """Draw both parts side by side; a PNG."""
    choice = sorted((r for r in results if r.system == CHOICE), key=lambda r: r.mean)
    decision = [r for r in results if r.system == DECISION]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.4), width_ratios=(1.3, 1), layout="constrained")
    _draw_choice(left, choice)
    _draw_decision(right, decision)
    return encode_png(figure)


def _draw_choice(panel: Any, rows: Sequence[ProxyResult]) -> None:
    colours = {"base": COLOURS["base"], "es": COLOURS["es"], "other": OTHERS[0]}
    for place, row in enumerate(rows):
        colour = colours[side_of(row)]
        panel.plot(
            row.values, [place] * len(row.values), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0
        )
        panel.plot([row.mean], [place], "|", color=colour, markersize=12, markeredgewidth=2.5)
    panel.set_yticks(range(len(rows)), [f"{row.variant} ({len(row.seeds)})" for row in rows], fontsize=7)
    panel.set_title("Choice: each run, and the mean of a variant (its runs)", fontsize=8.5, loc="left")
    panel.set_xlabel("top-1 on CIFAR-10 at 16x16, 10,000 training images", fontsize=9)
    panel.grid(axis="x", alpha=0.3)


def _draw_decision(panel: Any, rows: Sequence[ProxyResult]) -> None:
    by_name = {row.variant: row for row in rows}
    pairs = [(one, other) for one, other in PAIRS if one in by_name and other in by_name]
    lines = [(f"{one}\nminus {other}", by_name[one].differences(by_name[other])) for one, other in pairs]
    _draw_differences(panel, lines)
    panel.set_title("Decision: other seeds, mean and 95 % interval", fontsize=8.5, loc="left")
    panel.set_xlabel("points of top-1 at 32x32, 50,000 training images", fontsize=9)


def draw_beside(results: Sequence[ProxyResult]) -> bytes:
    """Draw the differences of groups, depth, width and recipes from the base of their system, seed by seed; a PNG."""
    lines = []
    for system, words in BESIDE.items():
        rows = [row for row in results if row.system == system]
        pairs = [(row, base) for row in rows if (base := find_base(row, rows)) is not None]
        lines += [(f"{row.variant}  ({words})", row.differences(base)) for row, base in pairs]
    figure, panel = plt.subplots(figsize=(8.4, 5.2), layout="constrained")
    _draw_differences(panel, lines)
    panel.set_title("Against the base: each seed, mean and 95 % interval", fontsize=8.5, loc="left")
    panel.set_xlabel("points of top-1 on CIFAR-10, 10,000 training images at 16x16 unless named", fontsize=9)
    return encode_png(figure)


def _draw_differences(panel: Any, lines: Sequence[tuple[str, Sequence[float]]]) -> None:
    """A line for each list of differences, seed by seed."""
    for place, (_, found) in enumerate(lines):
        mean, half = compute_interval(found)
        panel.errorbar([mean], [place], xerr=[half], fmt="D", color=COLOURS["es"], capsize=4, markersize=6)
        panel.plot(found, [place + 0.18] * len(found), "o", color="grey", alpha=0.6, markersize=4)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks(range(len(lines)), [words for words, _ in lines], fontsize=8)
    panel.set_ylim(max(len(lines), 1) - 0.4, -0.6)
    panel.grid(axis="x", alpha=0.3)
