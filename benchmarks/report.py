"""Rewrites the tables of performance.md, gpu.md, networks-coverage.md and onnx-catalogue.md in docs/reports.

python -m benchmarks.report

A table is between `<!-- table: NAME -->` and `<!-- end -->`; the text around it is written by hand.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report_gpu
from benchmarks.command import run_command
from benchmarks.timing import RESULTS
from esbnn_core.files import ROOT
from tasks.reproduce.report.markdown import render_markdown_table

DOCUMENT = ROOT / "docs" / "reports" / "performance.md"
GPU = ROOT / "docs" / "reports" / "gpu.md"
COVERAGE = ROOT / "docs" / "reports" / "networks-coverage.md"
CATALOGUE = ROOT / "docs" / "reports" / "onnx-catalogue.md"


def taken_on(record: dict[str, Any]) -> str:
    """One line: machine, versions, settings."""
    m, s = record["machine"], record["settings"]
    flat = s | s.get("versions", {})
    left_out = ("compile", "names", "size", "versions")
    shown = {key: value for key, value in flat.items() if key not in left_out and value is not None}
    settings = ", ".join(f"{key} {value}" for key, value in shown.items())
    return f"{m['cpu']}, path {m['path']}, torch {m['torch']}, Python {m['python']}; {settings}."


def layers(record: dict[str, Any]) -> str:
    """The nine layers, median microseconds, and the geometric means."""
    rows = record["rows"]
    names = list(rows[0]["us"])
    body = [
        [row["layer"], *(f"{row['us'][n]['median']:.0f}" for n in names), f"{100 * row['of the loop alone']:.0f} %"]
        for row in rows
    ]
    means = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in record["times_faster"].items())
    loop = f"The innermost loop alone reaches {record['loop_alone']} products of +-1 a nanosecond."
    head = ["layer, us", *names, "conv alone over that loop"]
    means = f"Best of each kind over the packed block, geometric means: {means}."
    return f"{render_markdown_table(head, body)}\n\n{loop} {means}"


def networks(record: dict[str, Any]) -> str:
    """Whole networks, median milliseconds, and how many times faster the best packed form is than each frozen one."""
    rows = record["rows"]
    names = list(rows[0]["us"])
    body = []
    for row in rows:
        us = {n: row["us"][n]["median"] for n in names}
        packed = min(value for n, value in us.items() if n.startswith("packed"))
        ratios = [f"{us[n] / packed:.2f}" for n in ("torch fp32 frozen", "torch bf16 frozen") if n in us]
        body.append([row["network"], *(f"{us[n] / 1000:.1f}" for n in names), *ratios])
    over = [f"best packed over {n}" for n in ("fp32 frozen", "bf16 frozen") if f"torch {n}" in names]
    return render_markdown_table(["network, ms", *names, *over], body)


def agreement(record: dict[str, Any]) -> str:
    """Predictions of packed and latent networks."""
    names = [name for name in record["rows"][0] if not name.startswith("seconds")]
    return render_markdown_table(names, [[row[name] for name in names] for row in record["rows"]])


def sizes(record: dict[str, Any]) -> str:
    """Bytes of packed files, and the seconds of an import."""
    names = list(record["rows"][0])
    seconds = record["import seconds"]
    text = f"`import esbnn_core` takes {seconds[0]} to {seconds[-1]} s beyond torch, in five processes."
    return f"{render_markdown_table(names, [[row[name] for name in names] for row in record['rows']])}\n\n{text}"


def kept(record: dict[str, Any]) -> str:
    """GiB that a forward keeps for backward at batch 256."""
    rows = record["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["GiB at batch 256"]))
    body = [[row["network"], *(f"{row['GiB at batch 256'].get(n, '')}" for n in names)] for row in rows]
    return render_markdown_table(["network, GiB", *names], body)


def steps(record: dict[str, Any]) -> str:
    """Time of a training step on plain layers and on bits, and how many times faster bits are."""
    rows = record["rows"]
    names = list(rows[0]["us"])
    kinds = list(rows[0]["throughput"])
    body = [
        [f"{row['network']}, {row['size']}x{row['size']}" + (f", batch {row['batch']}" if "batch" in row else "")]
        + [f"{row['us'][n]['median'] / 1000:.0f}" for n in names]
        + [f"{row['throughput'][kind]:.2f}" for kind in kinds]
        for row in rows
    ]
    return render_markdown_table(["network, ms a step", *names, *(f"bits over plain, {kind}" for kind in kinds)], body)


def gradients(record: dict[str, Any]) -> str:
    """Gradients of a convolution by torch and by Winograd: milliseconds, their ratio, errors."""
    rows = record["rows"]
    errors = [name for name in rows[0] if name.startswith("error")]
    body = []
    for row in rows:
        torchs, ours = (row["us"][name]["median"] / 1000 for name in ("torch", "Winograd"))
        errors_of = [f"{row[name]:.0e}" for name in errors]
        body.append([row["convolution"], f"{torchs:.1f}", f"{ours:.1f}", f"{torchs / ours:.2f}", *errors_of])
    return render_markdown_table(["both gradients, ms", "torch", "Winograd", "torch over Winograd", *errors], body)


def rivals(record: dict[str, Any]) -> str:
    """Whole networks in all runtimes, the fastest first, and ours against the fastest int8 rival."""
    faster = record["times the fastest int8"]
    order = sorted(record["us"].items(), key=lambda item: item[1]["median"])
    body = [
        [name, f"{times['median'] / 1000:.1f}", f"{faster[name]:.2f}" if name in faster else ""]
        for name, times in order
    ]
    return render_markdown_table(["network and runtime", "ms", "times as fast as the fastest int8 ResNet-18"], body)


def detection(record: dict[str, Any]) -> str:
    """Packed detectors against their latent networks, median milliseconds."""
    rows = record["rows"]
    names = list(rows[0]["us"])
    over = ["torch over packed", "torch over packed with suppression"]
    body = [
        [row["detector"], *(f"{row['us'][n]['median'] / 1000:.0f}" for n in names), *(f"{row[n]:.2f}" for n in over)]
        for row in rows
    ]
    return render_markdown_table(["detector, ms", *names, *over], body)


def super_resolution(record: dict[str, Any]) -> str:
    """One denoising step of packed UNets against their latent networks, median milliseconds."""
    rows = record["rows"]
    names = list(rows[0]["us"])
    over = [name for name in rows[0] if " over " in name]
    body = [
        [
            f"{row['network']}, {row['side']}x{row['side']}",
            *(f"{row['us'][n]['median'] / 1000:.0f}" for n in names),
            *(f"{row[n]:.2f}" for n in over),
        ]
        for row in rows
    ]
    return render_markdown_table(["one step, ms", *names, *over], body)


_MARKS = ("equal", "packed", "trains", "exports")


def coverage(record: dict[str, Any]) -> str:
    """What the verbs make of each network of torchvision and timm, and the first reason of each that is not whole."""
    rows = record["rows"]
    body = [
        [
            row["network"],
            f"{100 * row['binary']:.1f} %",
            f"{100 * row['expanded']:.1f} %",
            *(f"{ops / 1e6:.2f}" for ops in row["ops"]),
            *({True: "yes", False: "no", None: "real neither"}[row[key]] for key in _MARKS),
        ]
        for row in rows
    ]
    head = ["network", "binary", "of these expanded", "M OPs", "expanded, M OPs", "equal", "packed = latent", "trains"]
    whole = sum(row["expanded"] >= 0.95 for row in rows)
    equal, packed = (sum(row[key] for row in rows) for key in ("equal", "packed"))
    first = (
        f"tau = {record['tau']}, g = {record['groups']}, {len(rows)} networks: {whole} have 95 % or more of their "
        f"binary multiply-accumulates expanded; {equal} have equal operations and weights, "
        f"{packed} equal packed outputs."
    )
    notes = [f"- {row['network']}: {row['note']}." for row in rows if row["note"]]
    plain = ["", "What stays plain:", "", *notes] if notes else []
    return "\n".join([first, "", render_markdown_table([*head, "exports"], body), *plain])


def onnx_catalogue(record: dict[str, Any]) -> str:
    """Every network as an ONNX file: its size, what may change, and how far its outputs are from PyTorch's."""
    keys = ("difference", "PyTorch's own")
    body = [
        [
            row["network"],
            f"{row['bytes']:,}",
            f"{row['packed bytes']:,}",
            row["images"],
            *(f"{row[k]:.1e}" for k in keys),
        ]
        for row in record["rows"]
    ]
    close = sum(row["difference"] <= 1e-6 for row in record["rows"])
    within = sum(1e-6 < row["difference"] <= row["PyTorch's own"] for row in record["rows"])
    first = (
        f"{len(body)} networks: {close} agree to 1e-6, {within} more differ by no more than PyTorch's own largest "
        f"difference, {len(body) - close - within} by more."
    )
    head = ["network", "bytes of the ONNX file", "of the packed one", "images", "largest difference", "PyTorch's own"]
    return f"{first}\n\n{render_markdown_table(head, body)}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "layers": layers,
    "layers_avx2": layers,
    "rivals_avx512": rivals,
    "rivals_avx2": rivals,
    "networks": networks,
    "networks_batch8": networks,
    "agreement": agreement,
    "sizes": sizes,
    "detection": detection,
    "super_resolution": super_resolution,
    "onnx_catalogue": onnx_catalogue,
    "coverage": coverage,
    "coverage_tasks": coverage,
    "kept": kept,
    "steps": steps,
    "steps_avx2": steps,
    "steps_avx2_two_threads": steps,
    "gradients": gradients,
    **report_gpu.TABLES,
}
FILES = {
    "kept": "training_avx512-vpopcntdq",
    "steps": "training_avx512-vpopcntdq",
    "steps_avx2": "training_avx2-tables",
    "steps_avx2_two_threads": "training_avx2-tables_threads2",
    "gradients": "gradients_avx2-tables",
    "layers": "layers_avx512-vpopcntdq",
    "layers_avx2": "layers_avx2-tables",
    "rivals_avx512": "rivals_avx512-vpopcntdq",
    "rivals_avx2": "rivals_avx2-tables",
    **report_gpu.FILES,
}
"""Tables whose json file has another name."""


def marked(text: str, render: Callable[[str], str | None]) -> str:
    """The text with every table between `<!-- table: NAME -->` and `<!-- end -->` rendered anew; None keeps one."""

    def one(match: re.Match[str]) -> str:
        made = render(match["name"])
        return match[0] if made is None else f"<!-- table: {match['name']} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->", one, text, flags=re.DOTALL)


def rewrite(text: str, results: Path = RESULTS) -> str:
    """The document with every marked table rendered anew; a table whose json file is missing stays as it is.

    Raises:
        KeyError: a marked name without a function in TABLES.
    """

    def render(name: str) -> str | None:
        to_text, path = TABLES[name], results / f"{FILES.get(name, name)}.json"
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        taken = f"{taken_on(record)}\n\n" if "settings" in record else ""
        return taken + to_text(record)

    return marked(text, render)


def main() -> None:
    """Rewrite the documents in place."""
    for document in (DOCUMENT, GPU, COVERAGE, CATALOGUE):
        document.write_text(rewrite(document.read_text()))
        print(document)


if __name__ == "__main__":
    run_command(main)
