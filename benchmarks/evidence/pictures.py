"""Pictures of runs for docs/: curves of one run, one curve of several runs, and a sheet of the images that a run drew.

python -m benchmarks.evidence.pictures curves runs/X/metrics.csv OUT.png train_loss val_map_11point
python -m benchmarks.evidence.pictures together OUT.png val_top1 runs/X/metrics.csv runs/Y/metrics.csv ...
python -m benchmarks.evidence.pictures sheet OUT.png IMAGE.png IMAGE.png ... [--columns 4] [--width 320]
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.command import positive, run_command
from tasks.reproduce.report.pictures import paste_grid


def draw_curves(metrics: Path, names: list[str], out: Path) -> None:
    """Draw columns of a CSVLogger's file over the steps, one panel each; many points get a running mean."""
    records = _read_records(metrics)
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        points = [(int(record["step"]), float(record[name])) for record in records if record.get(name)]
        if not points:
            raise SystemExit(f"{metrics} has no values of {name}: its columns are {', '.join(records[0])}")
        steps, values = zip(*points, strict=True)
        few = len(points) < 50
        panel.plot(steps, values, marker="o" if few else None, color="tab:blue", alpha=1 if few else 0.3, linewidth=1)
        if not few:
            width = max(5, len(values) // 40)
            means = [
                sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
                for i in range(len(values))
            ]
            panel.plot(steps, means, color="tab:blue")
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def draw_together(runs: list[Path], name: str, out: Path) -> None:
    """Draw one column of several runs over the epochs, each labelled with its folder and its last value."""
    figure, panel = plt.subplots(figsize=(6.4, 3.6))
    for metrics in runs:
        records = [record for record in _read_records(metrics) if record.get(name)]
        points = [(int(record["epoch"]) + 1, float(record[name])) for record in records]
        if not points:
            raise SystemExit(f"{metrics} has no values of {name}")
        panel.plot(*zip(*points, strict=True), marker=".", label=f"{metrics.parent.name} {points[-1][1]:.2f}")
    panel.set(xlabel="epoch", ylabel=name)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def _read_records(metrics: Path) -> list[dict[str, str]]:
    with metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def draw_sheet(sources: list[Path], out: Path, columns: int, width: int) -> None:
    """Draw images side by side, each `width` pixels wide."""
    paste_grid([Image.open(source).convert("RGB") for source in sources], columns, width).save(out, quality=85)


def main() -> None:
    """Parse the command and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("curves")
    one.add_argument("metrics", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("names", nargs="+")
    two = kinds.add_parser("sheet")
    two.add_argument("out", type=Path)
    two.add_argument("sources", nargs="+", type=Path)
    two.add_argument("--columns", type=positive, default=4)
    two.add_argument("--width", type=positive, default=320)
    three = kinds.add_parser("together")
    three.add_argument("out", type=Path)
    three.add_argument("name")
    three.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    if args.kind == "curves":
        draw_curves(args.metrics, args.names, args.out)
    elif args.kind == "together":
        draw_together(args.runs, args.name, args.out)
    else:
        draw_sheet(args.sources, args.out, args.columns, args.width)
    print(args.out)


if __name__ == "__main__":
    run_command(main)
