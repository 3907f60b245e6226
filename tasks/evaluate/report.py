"""What `python -m tasks.evaluate` prints: the result as text, and entries to add to the catalogue."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from esbnn_core.checkpoint.catalogue import Entry, make_entry
from tasks.evaluate.target import Target

TOLERANCE = {"top1": 0.1, "map_11point": 0.5, "psnr": 0.05}
"""Default of a new entry of ours, in the metric's own unit: what another processor's rounding may change."""


def format_result(r: Mapping[str, Any]) -> str:
    """The result for people."""
    options = ", ".join(f"{key}={value}" for key, value in r["options"].items())
    head = [f"checkpoint   {r['name']}"] if r["name"] else []
    head += [f"note         {r['note']}"] if r["note"] else []
    head += [
        f"network      {r['network']}" + (f" ({options})" if options else ""),
        f"file         {r['file']}, {r['bytes']:,} bytes",
        f"sha256       {r['sha256']}",
        *([f"tensors      {r['tensors']} read"] if "tensors" in r else []),
    ]
    if r["ops"] is not None:
        parts = f"BOPs {r['bops'] / 1e9:.4f} G / 64 + FLOPs {r['flops'] / 1e8:.4f}e8"
        head.append(f"OPs          {r['ops'] / 1e8:.4f}e8 ({parts})")
        head.append(f"parameters   {r['params']:,} of which 1-bit {r['binary_params']:,}")
    return "\n".join([*head, *_format_task(r), *_format_comparison(r)])


def _format_task(r: Mapping[str, Any]) -> list[str]:
    if r["task"] == "classification":
        from tasks.classification.evaluation import format_lines

        return format_lines(r)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in r["metrics"].items())
    return [
        f"images       {r['images']:,} of {r['dataset']}/{r['split']}",
        f"time         {r['seconds']:.1f} s on {r['device']}, {r['images_per_second']:.2f} images/s",
        f"weights      {r['backend']}",
        f"metrics      {metrics}",
    ]


def _format_comparison(r: Mapping[str, Any]) -> list[str]:
    """Expected against measured, and what to add to the catalogue."""
    lines = []
    if r["name"] and r["measured"] is None:
        lines.append("nothing is measured of this file: it was read strictly and counted")
    elif r["name"]:
        source = f" ({r['source']})" if r["source"] else ""
        expected = (
            f"no value is known of {r['dataset']}"
            if r["expected"] is None
            else f"{r['expected']:g} +- {r['tolerance']:g}{source}"
        )
        verdict = {True: "within the tolerance", False: "OUTSIDE the tolerance", None: "not compared"}[r["within"]]
        if r["within"] is None and r["expected"] is not None:
            verdict += f": {_why_not(r)}"
        lines += [
            f"{r['metric']:12} measured {r['measured']:.4f}",
            f"{'':12} expected {expected}",
            f"{'':12} {verdict}",
        ]
    if r["entry_to_add"] is not None:
        lines += [
            "",
            f"NOTICE: the catalogue has no sha256 of {r['name']}, nobody had the file yet: if you trust where it came "
            f"from{' although it misses its value' if r['within'] is False else ''}, replace its entry by",
            json.dumps(r["entry_to_add"], indent=2),
        ]
    return ["", *lines] if lines else []


def _why_not(r: Mapping[str, Any]) -> str:
    known = r["images_published"]
    if known is not None and r["images"] != known:
        return f"{r['images']:,} images, the published value is of {known:,}"
    return "not all images, or prepared in another way"


def complete_entry(entry: Entry, target: Target) -> dict[str, Any] | None:
    """The entry with the hash and size of its file, None where it has them."""
    if entry.sha256:
        return None
    return dict(json.loads(replace(entry, sha256=target.sha256, bytes=target.bytes).json()))


def make_own_entry(
    result: Mapping[str, Any], name: str, home: Path, config: str, made_by: str, tolerance: float | None
) -> Entry:
    """The catalogue's entry of a file of ours.

    Args:
        result: of the evaluation.
        name: of the entry.
        home: folder of the manifest, with the file in it or below it.
        config: recipe that trained the network.
        made_by: command that trained it.
        tolerance: default that of TOLERANCE.

    Raises:
        InputError: a name, metric or tolerance that an entry cannot have.
    """
    path = Path(result["file"]).resolve()
    metric = result["metric"]
    given = {
        key: result[key] for key in ("task", "network", "options", "dataset", "split", "metric", "sha256", "bytes")
    }
    return make_entry(
        {
            **{"name": name, **given, "value": round(result["measured"], 4)},
            "tolerance": TOLERANCE[metric] if tolerance is None else tolerance,
            "file": str(path.relative_to(home.resolve())),
            **{"url": None, "access": "file", "licence": "Apache-2.0", "container": "safetensors", "keys": ""},
            **{"config": config, "command": made_by, "source": "", "note": ""},
        },
        "the new entry",
    )
