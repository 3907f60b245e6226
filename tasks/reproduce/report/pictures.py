"""Pictures of the report: Figure 1's pairs, the proxies, the ablation's curves, and pictures that runs have drawn."""

import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from esbnn_core.errors import InputError
from tasks.reproduce.modes.lines import Line, Outcome
from tasks.reproduce.modes.proxy_rows import ProxyRow

COLOURS = {"base": "#8c8c8c", "es": "#c44e52", "rep": "#4c72b0"}
OTHERS = ("#55a868", "#8172b3", "#ccb974", "#64b5cd", "#dd8452", "#937860")
WIDTH, MOST = 1100, 6
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Picture:
    """One picture of the report. name: of its file; title and caption: for people; data: a PNG."""

    name: str
    title: str
    caption: str
    data: bytes


def figure1(outcome: Outcome) -> Picture:
    """The pairs of bars: published, and measured here beside them where there is a measurement."""
    lines = {line.name: line for line in outcome.lines}
    pairs = [(line, lines[line.partner]) for line in outcome.lines if line.partner]
    if not pairs:
        raise InputError(
            "table figure1 has no row with a partner, so there is nothing to draw: name partners in its rows"
        )
    figure, panels = _panels(len(pairs), 2.5, 3.6)
    for panel, pair in zip(panels, pairs, strict=True):
        _pair(panel, *pair)
    measured = sum(line.ours is not None for line in outcome.lines)
    caption = (
        f"Grey: base, red: ES. Plain bars are published, hatched ones measured here ({measured} of {len(lines)}). The "
        f"axes do not start at 0."
    )
    return Picture("figure1.png", outcome.title, caption, png(figure))


def _pair(panel: Any, base: Line, es: Line) -> None:
    places, values, heights = [], [], []
    for place, (line, kind) in enumerate(((base, "base"), (es, "es"))):
        bars = [(float(line.published), "")] if line.published else []
        bars += [(line.ours, "//")] if line.ours is not None else []
        for number, (value, hatch) in enumerate(bars):
            x = place + (number - (len(bars) - 1) / 2) * 0.4
            panel.bar(x, value, 0.38, color=COLOURS[kind], hatch=hatch, edgecolor="white" if not hatch else "black")
            places.append(x)
            values.append(f"{value:.2f}" if base.metric.startswith("PSNR") else f"{value:.1f}")
            heights.append(value)
    if not heights:
        panel.set_axis_off()
        panel.text(0.5, 0.5, f"{base.system}:\nno value", ha="center", transform=panel.transAxes)
        return
    span = max(max(heights) - min(heights), 0.02 * max(heights))
    panel.set_ylim(min(heights) - 1.5 * span, max(heights) + 0.8 * span)
    for x, text, height in zip(places, values, heights, strict=True):
        panel.text(x, height + 0.04 * span, text, ha="center", va="bottom", fontsize=8)
    if base.published and es.published:
        gain = float(es.published) - float(base.published)
        digits = 2 if base.metric.startswith("PSNR") else 1
        panel.text(0.5, max(heights) + 0.45 * span, f"published +{gain:.{digits}f}", ha="center", fontsize=9)
    panel.set_xticks([0, 1], [base.system, es.system], fontsize=8)
    panel.set_xlim(-0.6, 1.6)
    panel.set_title(f"{base.dataset}\n{base.metric}", fontsize=9)


def proxies(rows: Sequence[ProxyRow]) -> Picture:
    """Every proxy but the ablation: mean with its 95 % interval, and each seed as a dot."""
    rows = [row for row in rows if row.system != "ablation"]
    groups: dict[tuple[str, str, str], list[ProxyRow]] = {}
    for row in rows:
        groups.setdefault((row.system, row.dataset, row.metric_name), []).append(row)
    if not groups:
        raise InputError("there is no proxy to draw: python -m tasks.reproduce figure1 --mode proxy trains them")
    most = max(len(members) for members in groups.values())
    figure, panels = _panels(len(groups), max(2.6, 0.85 * most), 3.6, most=3)
    for panel, ((system, dataset, metric), members) in zip(panels, groups.items(), strict=True):
        for place, row in enumerate(members):
            colour = COLOURS.get(row.variant, OTHERS[place % len(OTHERS)])
            panel.plot([place] * len(row.values), row.values, "o", color=colour, alpha=0.4, markersize=4)
            width = row.half_width if len(row.values) > 1 else None
            panel.errorbar(place, row.mean, yerr=width, fmt="D", color=colour, capsize=5, markersize=6)
            # beside the mean, where no interval runs through it
            panel.text(place + 0.12, row.mean, f"{row.mean:.2f}", va="center", fontsize=8)
        panel.set_xticks(range(len(members)), [textwrap.fill(row.variant, 9) for row in members], fontsize=8)
        panel.set_xlim(-0.5, len(members) - 0.2)
        panel.margins(y=0.12)
        panel.set_title(f"{system}\n{dataset}, {metric}", fontsize=9)
        panel.grid(axis="y", alpha=0.3)
    caption = (
        "Proxies: small networks, short runs, equal operations. Diamond: mean over the seeds with its 95 % interval "
        "(none for one seed); dots: the seeds. No value compares with a published one."
    )
    return Picture("proxies.png", "Proxy comparisons", caption, png(figure))


def ablation(rows: Sequence[ProxyRow]) -> Picture:
    """Curves over tau, one for each number of groups (and whatever else the variants name)."""
    curves: dict[str, list[tuple[int, ProxyRow]]] = {}
    flat: list[ProxyRow] = []
    for row in (row for row in rows if row.system == "ablation"):
        met = re.fullmatch(r"tau=(\d+) +(g=\d+.*)", row.variant)
        if met:
            curves.setdefault(met.group(2), []).append((int(met.group(1)), row))
        else:
            flat.append(row)
    if not curves:
        raise InputError("there is no ablation to draw: python -m tasks.reproduce ablation --mode proxy trains it")
    figure, (scores, sizes) = _panels(2, 4.2, 3.6)
    shift = 1.0
    for place, (label, points) in enumerate(curves.items()):
        points.sort(key=lambda point: point[0])
        colour = OTHERS[place % len(OTHERS)]
        taus = [tau * shift for tau, _ in points]
        means = [row.mean for _, row in points]
        widths = [row.half_width if len(row.values) > 1 else 0.0 for _, row in points]
        scores.errorbar(taus, means, yerr=widths, marker="o", capsize=4, color=colour, label=label)
        sizes.plot(
            [tau for tau, _ in points], [row.params / 1e3 for _, row in points], marker="o", color=colour, label=label
        )
        shift *= 1.03  # intervals side by side, not on one another
    for row in flat:
        scores.axhline(row.mean, linestyle="--", color="black", linewidth=1, label=row.variant)
    first = next(iter(curves.values()))[0][1]
    scores.set_title(f"{first.metric} on {first.dataset}", fontsize=9)
    sizes.set_title("parameters, thousands", fontsize=9)
    taus = sorted({tau for points in curves.values() for tau, _ in points})
    for panel in (scores, sizes):
        panel.set_xscale("log", base=2)
        panel.set_xticks(taus, [str(tau) for tau in taus])
        panel.minorticks_off()
        panel.set_xlabel("tau")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    ops = sorted({round(row.ops) for points in curves.values() for _, row in points})
    equal = f"{ops[0] / 1e6:.3f} M OPs in every point" if len(ops) == 1 else f"{ops[0]:,} to {ops[-1]:,} OPs"
    caption = f"Proxy: {equal}. Bars are 95 % intervals over the seeds (none for one seed)."
    return Picture("ablation.png", "Ablation: tau and groups", caption, png(figure))


def drawn(folders: Iterable[tuple[str, Path]]) -> list[Picture]:
    """Pictures that `predict` has left in folders: the sheet of super-resolution, the boxes of a detector.

    Args:
        folders: (title, folder). One that does not exist is left out.

    Raises:
        InputError: a file with a picture's name that is none.
    """
    found = []
    for title, folder in folders:
        if not folder.is_dir():
            continue
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        sheets = [path for path in files if path.stem == "_sheet"]
        if not files:
            continue
        stem = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
        image = _opened(sheets[0]) if sheets else _side_by_side([_opened(path) for path in files[:MOST]])
        image.thumbnail((WIDTH, 4 * WIDTH))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        shown = f"{folder.name}/_sheet" if sheets else ", ".join(path.stem for path in files[:MOST])
        found.append(
            Picture(f"pictures_{stem}.png", title, f"Drawn by predict in {folder}: {shown}.", buffer.getvalue())
        )
    return found


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's of a broken PNG
        raise InputError(f"picture {path} cannot be read ({error}): remove it or run predict anew") from error


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Up to three in a row, all of one width."""
    columns = min(3, len(images))
    width = WIDTH // columns
    scaled = [image.resize((width, max(1, round(image.height * width / image.width)))) for image in images]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(image.height for image in row) for row in rows]
    page = Image.new("RGB", (columns * width, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            page.paste(image, (column * width, sum(heights[:number])))
    return page


def _panels(number: int, width: float, height: float, most: int = 5) -> tuple[Any, list[Any]]:
    """A figure with at most `most` panels in a row; matplotlib is imported here, what draws nothing does without."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InputError("the pictures need matplotlib, which is not installed: pip install 'esbnn[all]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(number, most)
    rows = -(-number // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    panels = list(axes.flat)
    for panel in panels[number:]:
        panel.set_axis_off()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels[:number]


def png(figure: Any) -> bytes:
    """A figure of matplotlib as a file, which is closed with it."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    # no date and no version: the same table gives the same file
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
