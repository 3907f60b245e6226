"""The tables of docs/reports/gpu.md, from what the stages of benchmarks.gpu_check have left."""

from collections.abc import Callable
from typing import Any

from tasks.reproduce.report.markdown import render_markdown_table


def taken_on(record: dict[str, Any]) -> str:
    """One line: the device and the versions."""
    gpu, machine = record["gpu"], record["machine"]
    copied = record.get("copy_tb_s") or record.get("step_times", {}).get("copy_tb_s")
    copied = f"; a copy moves {copied:.2f} TB/s, read and written" if copied else ""
    return (
        f"{gpu['name']}, path {gpu['path']}, torch {machine['torch']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}, "
        f"Python {machine['python']}{copied}."
    )


def _with_head(record: dict[str, Any], table: str) -> str:
    return f"{taken_on(record)}\n\n{table}"


def blocks(record: dict[str, Any]) -> str:
    """A block at all batches, median microseconds."""
    rows = record["G1"] + record["G3"]
    names = list(rows[0]["us"])
    body = [
        [
            row["layer"],
            row["batch"],
            *(f"{row['us'][n]['median']:.1f}" if n in row["us"] else "" for n in names),
            f"{100 * row['share_of_floor']:.0f} %",
            *(f"{row['times_faster'][n]:.2f}" if n in row["times_faster"] else "" for n in names[2:]),
        ]
        for row in rows
    ]
    head = ["block, us", "batch", *names, "share of the memory floor", *(f"over {n}" for n in names[2:])]
    return _with_head(record, render_markdown_table(head, body))


def alone(record: dict[str, Any]) -> str:
    """A convolution alone, peta-operations of +-1 a second."""
    rows = record["G2"]
    names = list(rows[0]["pops"])
    body = [[row["layer"], row["batch"], *(f"{row['pops'][n]:.2f}" for n in names)] for row in rows]
    return render_markdown_table(["convolution, POPS", "batch", *names], body)


def networks(record: dict[str, Any]) -> str:
    """Whole networks, median milliseconds, and images a second of the packed bfloat16 form."""
    rows = record["times"]
    names = list(rows[0]["us"])
    body = [
        [
            row["network"],
            row["batch"],
            *(f"{row['us'][n]['median'] / 1000:.2f}" for n in names),
            f"{row['over packed bf16']['torch bf16']:.2f}",
            f"{row['images a second']['packed bf16']:,}",
        ]
        for row in rows
    ]
    head = ["network, ms", "batch", *names, "packed bf16 over torch bf16", "images a second, packed bf16"]
    return _with_head(record, render_markdown_table(head, body))


def steps(record: dict[str, Any]) -> str:
    """The kernels around the sums, median microseconds, and how many times faster than torch's pieces."""
    rows = record["step_times"]["rows"]
    names = list(rows[0]["us"])
    body = [
        [
            row["layer"],
            row["dtype"].removeprefix("torch."),
            *(f"{row['us'][n]['ours']['median']:.0f} ({row['times_faster'][n]:.1f})" for n in names),
        ]
        for row in rows
    ]
    head = ["map, us (times as fast as torch)", "type", *names]
    return _with_head(record, render_markdown_table(head, body))


def training(record: dict[str, Any]) -> str:
    """Whole training steps by way and precision: milliseconds, of a graph of forward and backward too, and memory."""
    body = []
    for row in record["steps"]:
        for way, times in row["us"].items():
            graph = row.get("us, graph", {}).get(way)
            body.append(
                [
                    f"{row['network']}, {row['size']}x{row['size']}",
                    row["batch"],
                    way,
                    f"{times['median'] / 1000:.1f}",
                    "" if graph is None else f"{graph['median'] / 1000:.1f}",
                    f"{row['peak GiB'][way]:.2f}",
                ]
            )
    head = ["network", "batch", "way", "step, ms", "forward and backward in a graph, ms", "peak, GiB"]
    return render_markdown_table(head, body)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "gpu_blocks": blocks,
    "gpu_alone": alone,
    "gpu_networks": networks,
    "gpu_steps": steps,
    "gpu_training": training,
    "gpu_training_first": training,
}
FILES = {
    "gpu_blocks": "gpu/blocks",
    "gpu_alone": "gpu/blocks",
    "gpu_networks": "gpu/networks",
    "gpu_steps": "gpu/training_first",
    "gpu_training": "gpu/training",
    "gpu_training_first": "gpu/training_first",
}
"""Table -> json file of benchmarks/results."""
