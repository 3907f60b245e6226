"""Pictures of runs for docs/: curves of one, a column of several, and a contact sheet of the pictures that one drew.

python -m benchmarks.evidence.pictures curves runs/X/metrics.csv OUT.png train_loss val_map_11point
python -m benchmarks.evidence.pictures together OUT.png val_top1 runs/X/metrics.csv runs/Y/metrics.csv ...
python -m benchmarks.evidence.pictures sheet OUT.png PICTURE.png PICTURE.png ... [--columns 4] [--width 320]
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from PIL import Image


def curves(metrics: Path, names: list[str], out: Path) -> None:
    """One panel a column of a CSVLogger's file over the steps, with a running mean where there are many points."""
    rows = _rows(metrics)
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if not points:
            raise SystemExit(f"{metrics} has no values of {name}: its columns are {', '.join(rows[0])}")
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


def together(runs: list[Path], name: str, out: Path) -> None:
    """One column of several runs over the epochs, each named by its folder and its last value."""
    figure, panel = plt.subplots(figsize=(6.4, 3.6))
    for metrics in runs:
        points = [(int(row["epoch"]) + 1, float(row[name])) for row in _rows(metrics) if row.get(name)]
        if not points:
            raise SystemExit(f"{metrics} has no values of {name}")
        panel.plot(*zip(*points, strict=True), marker=".", label=f"{metrics.parent.name} {points[-1][1]:.2f}")
    panel.set(xlabel="epoch", ylabel=name)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def _rows(metrics: Path) -> list[dict[str, str]]:
    with metrics.open(newline="") as file:
        return list(csv.DictReader(file))


def sheet(sources: list[Path], out: Path, columns: int, width: int) -> None:
    """The pictures side by side, every one `width` pixels wide."""
    pictures = [Image.open(source).convert("RGB") for source in sources]
    pictures = [picture.resize((width, round(picture.height * width / picture.width))) for picture in pictures]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    page = Image.new("RGB", (columns * width, sum(heights)), "white")
    for index, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture, (column * width, sum(heights[:index])))
    page.save(out, quality=85)


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("curves")
    one.add_argument("metrics", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("names", nargs="+")
    two = kinds.add_parser("sheet")
    two.add_argument("out", type=Path)
    two.add_argument("sources", nargs="+", type=Path)
    two.add_argument("--columns", type=int, default=4)
    two.add_argument("--width", type=int, default=320)
    three = kinds.add_parser("together")
    three.add_argument("out", type=Path)
    three.add_argument("name")
    three.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    if args.kind == "curves":
        curves(args.metrics, args.names, args.out)
    elif args.kind == "together":
        together(args.runs, args.name, args.out)
    else:
        sheet(args.sources, args.out, args.columns, args.width)
    print(args.out)


if __name__ == "__main__":
    main()
