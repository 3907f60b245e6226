"""The demo's report: a short table, a full one and a picture."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esbnn_core.files import write_atomically
from esbnn_core.kernels import cpu

Column = tuple[str, Callable[[Any], str]]
_SUMMARY: list[Column] = [
    ("network", lambda r: r.system),
    ("test accuracy", lambda r: f"{r.top1_packed:.2f} %"),
    ("OPs", lambda r: f"{r.ops / 1e6:.3f} M"),
    ("file", lambda r: f"{r.bytes_packed / 1024:.1f} KiB"),
    ("time per image", lambda r: f"{r.ms_packed:.2f} ms"),
]
_COLUMNS: list[Column] = [
    ("network", lambda r: r.system),
    ("top-1 latent %", lambda r: f"{r.top1_latent:.2f}"),
    ("top-1 packed %", lambda r: f"{r.top1_packed:.2f}"),
    ("differing", lambda r: f"{r.differing}"),
    ("BOPs (M)", lambda r: f"{r.bops / 1e6:.3f}"),
    ("FLOPs (M)", lambda r: f"{r.flops / 1e6:.3f}"),
    ("OPs (M)", lambda r: f"{r.ops / 1e6:.3f}"),
    ("parameters", lambda r: f"{r.params:,}"),
    ("bytes latent", lambda r: f"{r.bytes_latent:,}"),
    ("bytes packed", lambda r: f"{r.bytes_packed:,}"),
    ("ms/image latent", lambda r: f"{r.ms_latent:.3f}"),
    ("ms/image packed", lambda r: f"{r.ms_packed:.3f}"),
    ("fit s", lambda r: f"{r.train_seconds:.0f}"),
]


def render_summary(rows: Sequence[Any]) -> str:
    """The packed networks in five columns, and whether they agree with the latent ones; `rows` as render_report's."""
    differing = sum(row.differing for row in rows)
    agree = f"on {differing} test images" if differing else "on no test image"
    return "\n".join([*_table(_SUMMARY, rows), "", f"Packed and latent networks disagree {agree}.", ""])


def _table(columns: Sequence[Column], rows: Sequence[Any]) -> list[str]:
    """Lines of a markdown table."""
    head = [name for name, _ in columns]
    body = [[cell(row) for _, cell in columns] for row in rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, body)]


def render_report(rows: Sequence[Any]) -> str:
    """The full table, the commands and what the numbers are; `rows` are tasks.classification.demo.Row."""
    notes = [f"- {row.system}: `{row.command}`" for row in rows]
    for row in (row for row in rows if row.start):
        words = ", ".join(f"{key} {value}" for key, value in row.start.items() if value)
        notes.append(f"- {row.system} starts its copies apart ({words}; ours, the paper starts them identical)")
    notes.append(
        "- Fashion-MNIST subset of the repository (11,000 to train, 1,000 to validate, 3,000 to test); one seed, which "
        "proves nothing about base against ES. Milliseconds: median over batches of 100, both paths in turn; "
        f"packed runs on the path `{cpu.choose()[1].serving}` (esbnn doctor)."
    )
    return "\n".join([*_table(_COLUMNS, rows), "", *notes, ""])


def draw_report(rows: Sequence[Any], path: Path) -> None:
    """Draw validation curves, test top-1 of both paths and file sizes, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = ["#4c72b0", "#dd8452", "#55a868"]
    figure, (curve, bars, sizes) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for index, row in enumerate(rows):
        epochs = range(1, len(row.val_top1) + 1)
        curve.plot(
            epochs, row.val_top1, marker="o", color=colours[index], label=f"{row.system} ({row.ops / 1e6:.3f} M OPs)"
        )
    curve.set(title="validation top-1, %", xlabel="epoch")
    curve.xaxis.get_major_locator().set_params(integer=True)
    curve.legend()
    width = 0.38
    for offset, path_name, shade in ((-0.5, "latent", 1.0), (0.5, "packed", 0.55)):
        places = [i + offset * width for i in range(len(rows))]
        tops = [getattr(row, f"top1_{path_name}") for row in rows]
        drawn = bars.bar(places, tops, width, color=colours[: len(rows)], alpha=shade, edgecolor="black")
        bars.bar_label(drawn, [f"{path_name}\n{top:.2f}" for top in tops], fontsize=8)
        kilobytes = [getattr(row, f"bytes_{path_name}") / 1024 for row in rows]
        drawn = sizes.bar(places, kilobytes, width, color=colours[: len(rows)], alpha=shade, edgecolor="black")
        sizes.bar_label(drawn, [f"{path_name}\n{size:.0f}" for size in kilobytes], fontsize=8)
    bars.set(title="test top-1, %", ylim=(0, 112))
    sizes.set(title="checkpoint, KiB", ylim=(0, 1.25 * max(row.bytes_latent for row in rows) / 1024))
    for axis in (bars, sizes):
        axis.set_xticks(range(len(rows)), [row.system for row in rows])
    for axis in (curve, bars, sizes):
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
