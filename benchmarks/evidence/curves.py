"""Curves of docs/reports/evidence.md over all runs of one network, of any comparison.

The network is the ResNet-8 of 16, 32 and 64 channels and its ES at tau = 2 without groups. The runs differ in learning
rate, length and `copy_spread`.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from tasks.reproduce.modes.proxy_results import ProxyResult, compute_half_width
from tasks.reproduce.report.pictures import COLOURS, OTHERS, encode_png
from tasks.reproduce.tables.configs import read_setting

OPTION = "model.optimizer.init_args.lr"
BASE, ES = "reactnet_resnet8", "es_reactnet_resnet8"
SET = "fashion_mnist_mini"
RATE, LENGTH = 0.005, 8
"""Learning rate and epochs of the proxy's own recipe; each panel changes one of the two."""

Key = tuple[str, float, float, float]
"""Network, copy_spread, learning rate, epochs."""


def read_learning_rate(result: ProxyResult) -> float:
    """The learning rate of the command, else of its last config that has one."""
    words = shlex.split(result.command)
    if f"--{OPTION}" in words:
        return float(words[words.index(f"--{OPTION}") + 1])
    found = read_setting(tuple(words[place + 1] for place, word in enumerate(words) if word == "--config"), OPTION)
    if found is None:
        raise ValueError(f"no learning rate in {result.command}")
    return float(found)


def group_by_setting(results: Sequence[ProxyResult]) -> dict[Key, dict[int, float]]:
    """Value of each seed on SET, for every setting of the ResNet-8 and its ES; ES at tau = 1 is the ResNet-8."""
    groups: dict[Key, dict[int, float]] = {}
    for result in results:
        options = result.options
        tau = options.get("tau", 2) if result.network == ES else 1
        of_set = result.dataset == SET and result.network in (BASE, ES)
        if of_set and tau <= 2 and options.get("groups", 1) == 1:
            network, spread = BASE if tau == 1 else ES, float(options.get("copy_spread", 0))
            seeds = groups.setdefault((network, spread, read_learning_rate(result), result.epochs), {})
            seeds.update(zip(result.seeds, result.values, strict=True))
    return groups


def compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, 0 for one value, which has none."""
    return sum(values) / len(values), compute_half_width(values) if len(values) > 1 else 0.0


def draw_reasons(results: Sequence[ProxyResult]) -> bytes:
    """Draw top-1 over the learning rate, and ES against base over the length, with and without `copy_spread`; a PNG."""
    groups = group_by_setting(results)
    figure, (rates, lengths) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for network, name, colour in ((BASE, "base", COLOURS["base"]), (ES, "ES", COLOURS["es"])):
        for epochs, style in ((LENGTH, "-"), (4, "--")):
            points = {
                key[2]: compute_interval([*seeds.values()])
                for key, seeds in groups.items()
                if (key[0], key[1], key[3]) == (network, 0, epochs)
            }
            shift = 1.03 if network == ES else 1.0  # so that intervals do not cover each other
            _draw_line(rates, points, shift, label=f"{name}, {epochs} epochs", color=colour, linestyle=style)
    for spread, colour in ((0.0, COLOURS["es"]), (0.5, OTHERS[0])):
        paired = [key for key in groups if key[:3] == (ES, spread, RATE) and (BASE, 0, *key[2:]) in groups]
        gains = {key[3]: compute_interval(compute_gains(groups, key)) for key in paired}
        _draw_line(lengths, gains, 1 + 0.06 * spread, label=f"copy_spread {spread:g}", color=colour, linestyle="-")
    lengths.axhline(0, color=COLOURS["base"], linewidth=1, label="base")
    for panel, title, axis in (
        (rates, "top-1", "learning rate"),
        (lengths, f"top-1 of ES less base, learning rate {RATE}", "epochs"),
    ):
        panel.set_xscale("log")
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    rates.set_xticks(*_ticks({key[2] for key in groups if key[3] in (4, LENGTH)}))
    lengths.set_xticks(*_ticks({key[3] for key in groups if key[:3] == (ES, 0, RATE)}))
    return encode_png(figure)


def compute_gains(groups: Mapping[Key, Mapping[int, float]], key: Key) -> list[float]:
    """The value of ES less that of the base of the same rate and length, seed by seed."""
    base = groups[(BASE, 0, *key[2:])]
    return [value - base[seed] for seed, value in groups[key].items() if seed in base]


def _draw_line(panel: Any, points: Mapping[float, tuple[float, float]], shift: float, **look: Any) -> None:
    places = sorted(points)
    means, widths = [points[place][0] for place in places], [points[place][1] for place in places]
    panel.errorbar([place * shift for place in places], means, yerr=widths, marker="o", capsize=3, **look)


def _ticks(places: set[float]) -> tuple[list[float], list[str]]:
    return sorted(places), [f"{place:g}" for place in sorted(places)]
