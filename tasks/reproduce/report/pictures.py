"""Pictures of the report: Figure 1's pairs, the proxies, the ablation's curves, and what `predict` has drawn."""

import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from esbnn_core.errors import InputError
from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.modes.results import CellResult, TableResult

COLOURS = {"base": "#8c8c8c", "es": "#c44e52", "rep": "#4c72b0"}
OTHERS = ("#55a868", "#8172b3", "#ccb974", "#64b5cd", "#dd8452", "#937860")
WIDTH, MOST = 1100, 6
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        name: of its file.
        title: for people.
        caption: for people.
        data: a PNG.
    """

    name: str
    title: str
    caption: str
    data: bytes


def draw_figure1(table: TableResult) -> Picture:
    """Draw the pairs of bars: published, with the value measured here beside it if there is one."""
    cells = {cell.name: cell for cell in table.cells}
    pairs = [(cell, cells[cell.partner]) for cell in table.cells if cell.partner]
    if not pairs:
        raise InputError("table figure1 must have a row with a partner, got none: name partners in its rows")
    figure, panels = _make_panels(len(pairs), 2.5, 3.6)
    for panel, pair in zip(panels, pairs, strict=True):
        _draw_pair(panel, *pair)
    measured = sum(cell.ours is not None for cell in table.cells)
    caption = (
        f"Grey: base, red: ES. Plain bars are published, hatched ones measured here ({measured} of {len(cells)}). The "
        f"axes do not start at 0."
    )
    return Picture("figure1.png", table.title, caption, encode_png(figure))


def _draw_pair(panel: Any, base: CellResult, es: CellResult) -> None:
    places, values, heights = [], [], []
    for place, (cell, kind) in enumerate(((base, "base"), (es, "es"))):
        bars = [(float(cell.published), "")] if cell.published else []
        bars += [(cell.ours, "//")] if cell.ours is not None else []
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


def draw_proxies(results: Sequence[ProxyResult]) -> Picture:
    """Draw every proxy except the ablation: the mean with its 95 % interval, and each seed as a dot."""
    groups: dict[tuple[str, str, str], list[ProxyResult]] = {}
    for result in results:
        if result.system != "ablation":
            groups.setdefault((result.system, result.dataset, result.metric_name), []).append(result)
    if not groups:
        raise InputError("there is no proxy to draw: python -m tasks.reproduce figure1 --mode proxy trains them")
    most = max(len(members) for members in groups.values())
    figure, panels = _make_panels(len(groups), max(2.6, 0.85 * most), 3.6, most=3)
    for panel, ((system, dataset, metric), members) in zip(panels, groups.items(), strict=True):
        for place, result in enumerate(members):
            colour = COLOURS.get(result.variant, OTHERS[place % len(OTHERS)])
            panel.plot([place] * len(result.values), result.values, "o", color=colour, alpha=0.4, markersize=4)
            width = result.half_width if len(result.values) > 1 else None
            panel.errorbar(place, result.mean, yerr=width, fmt="D", color=colour, capsize=5, markersize=6)
            # beside the mean, clear of its interval
            panel.text(place + 0.12, result.mean, f"{result.mean:.2f}", va="center", fontsize=8)
        panel.set_xticks(range(len(members)), [textwrap.fill(result.variant, 9) for result in members], fontsize=8)
        panel.set_xlim(-0.5, len(members) - 0.2)
        panel.margins(y=0.12)
        panel.set_title(f"{system}\n{dataset}, {metric}", fontsize=9)
        panel.grid(axis="y", alpha=0.3)
    caption = (
        "Proxies: small networks, short runs, equal operations. Diamond: mean over the seeds with its 95 % interval "
        "(none for one seed); dots: the seeds. No value compares with a published one."
    )
    return Picture("proxies.png", "Proxy comparisons", caption, encode_png(figure))


def draw_ablation(results: Sequence[ProxyResult]) -> Picture:
    """Draw curves over tau, one for each number of groups and whatever else the variants name."""
    curves: dict[str, list[tuple[int, ProxyResult]]] = {}
    flat: list[ProxyResult] = []
    for result in (result for result in results if result.system == "ablation"):
        match = re.fullmatch(r"tau=(\d+) +(g=\d+.*)", result.variant)
        if match:
            curves.setdefault(match.group(2), []).append((int(match.group(1)), result))
        else:
            flat.append(result)
    if not curves:
        raise InputError("there is no ablation to draw: python -m tasks.reproduce ablation --mode proxy trains it")
    figure, (scores, sizes) = _make_panels(2, 4.2, 3.6)
    shift = 1.0
    for place, (label, points) in enumerate(curves.items()):
        points.sort(key=lambda point: point[0])
        colour = OTHERS[place % len(OTHERS)]
        taus = [tau * shift for tau, _ in points]
        means = [result.mean for _, result in points]
        widths = [result.half_width if len(result.values) > 1 else 0.0 for _, result in points]
        scores.errorbar(taus, means, yerr=widths, marker="o", capsize=4, color=colour, label=label)
        sizes.plot(
            [tau for tau, _ in points],
            [result.params / 1e3 for _, result in points],
            marker="o",
            color=colour,
            label=label,
        )
        shift *= 1.03  # intervals side by side, not on one another
    for result in flat:
        scores.axhline(result.mean, linestyle="--", color="black", linewidth=1, label=result.variant)
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
    ops = sorted({round(result.ops) for points in curves.values() for _, result in points})
    equal = f"{ops[0] / 1e6:.3f} M OPs in every point" if len(ops) == 1 else f"{ops[0]:,} to {ops[-1]:,} OPs"
    caption = f"Proxy: {equal}. Bars are 95 % intervals over the seeds (none for one seed)."
    return Picture("ablation.png", "Ablation: tau and groups", caption, encode_png(figure))


def gather_pictures(folders: Iterable[tuple[str, Path]]) -> list[Picture]:
    """Pictures that `predict` has written to folders: the sheet of super-resolution, the boxes of a detector.

    Args:
        folders: (title, folder); one that does not exist is left out.

    Raises:
        InputError: a file with the suffix of a picture that is not one.
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
        image = _open_image(sheets[0]) if sheets else _paste_images([_open_image(path) for path in files[:MOST]])
        image.thumbnail((WIDTH, 4 * WIDTH))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        shown = f"{folder.name}/_sheet" if sheets else ", ".join(path.stem for path in files[:MOST])
        found.append(
            Picture(f"pictures_{stem}.png", title, f"Drawn by predict in {folder}: {shown}.", buffer.getvalue())
        )
    return found


def _open_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's of a broken PNG
        raise InputError(f"picture {path} cannot be read ({error}): remove it or run predict anew") from error


def _paste_images(images: Sequence[Image.Image]) -> Image.Image:
    """At most three a row, on a page of WIDTH pixels."""
    columns = min(3, len(images))
    return paste_grid(images, columns, WIDTH // columns)


def paste_grid(images: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Images on a white page, so many a row and all of one width in pixels."""
    scaled = [image.resize((width, max(1, round(image.height * width / image.width)))) for image in images]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(image.height for image in row) for row in rows]
    page = Image.new("RGB", (columns * width, sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            page.paste(image, (column * width, sum(heights[:number])))
    return page


def _make_panels(number: int, width: float, height: float, most: int = 5) -> tuple[Any, list[Any]]:
    """A figure with at most `most` panels in a row. Imports matplotlib, which a run without pictures does not need."""
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


def encode_png(figure: Any) -> bytes:
    """A figure of matplotlib as a PNG; closes the figure."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    # no date and no version: the same table gives the same file
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
