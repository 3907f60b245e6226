"""Every network of the catalogue as an ONNX file, packed, at the size of its papers, and its outputs beside PyTorch's.

`python -m benchmarks.onnx_catalogue [PART] [--standard]` prints a line for each network whose name contains PART: bytes
of the file and of the packed one, how the images may change, and the largest difference over the largest output.
Without --standard each line also takes its place in onnx_catalogue.json, from which benchmarks.report makes
docs/reports/onnx-catalogue.md.
Weights are random, every temperature is at its end, and the norms have the statistics of two batches of noise, without
which an untrained network multiplies whatever small difference it meets. A sign at a tie may turn where a real layer
sums in another order; what that can do is in the last column, PyTorch's own largest difference for images 1 to 3 times
2^-22 larger or smaller.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.command import run_command
from benchmarks.speed.parts import anneal_, settle_
from benchmarks.timing import RESULTS, write
from esbnn_core import create_model, list_models, model_spec, pack_, save_checkpoint
from esbnn_core.onnx import export_onnx, session


def make_packed(name: str) -> nn.Module:
    """A network of the catalogue with random weights and settled norms, packed."""
    torch.manual_seed(0)
    model = anneal_(create_model(name))
    spec = model_spec(model)
    assert spec is not None
    return pack_(settle_(model, *(torch.randn(2, *spec.input_size) for _ in range(2))))


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest over all outputs, relative to the largest value of its output."""
    pairs = zip(found, wanted, strict=True)
    return max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)


@torch.inference_mode()
def compare(name: str, folder: Path, standard: bool) -> dict[str, Any]:
    """The row of a network."""
    model = make_packed(name)
    spec = model_spec(model)
    assert spec is not None
    save_checkpoint(model, folder / "packed.safetensors")
    with torch.inference_mode(False):
        written = export_onnx(model, folder / "net.onnx", standard=standard)
    runs = session(written.path)
    images = written.inputs["images"]
    shapes = [(1, *spec.input_size), (2, *spec.input_size)]
    if "height" in images:
        shapes.append((1, spec.input_size[0], spec.input_size[1] + 32, spec.input_size[2] + 64))

    def outputs(x: Tensor) -> list[Tensor]:
        made = model(x)
        return [made] if isinstance(made, Tensor) else list(made)

    worst = chaos = 0.0
    for shape in shapes:
        x = torch.randn(shape)
        want = outputs(x)
        got = [torch.from_numpy(array) for array in runs.run(None, {"images": x.numpy()})]
        worst = max(worst, difference(got, want))
        chaos = max(chaos, *(difference(outputs(x * (1 + step * 2**-22)), want) for step in (-3, -2, -1, 1, 2, 3)))
    return {
        "network": name,
        "bytes": written.size,
        "packed bytes": (folder / "packed.safetensors").stat().st_size,
        "images": "x".join(map(str, images)),
        "difference": worst,
        "PyTorch's own": chaos,
    }


def keep(row: dict[str, Any]) -> None:
    """Put a row in its place of onnx_catalogue.json."""
    path = RESULTS / "onnx_catalogue.json"
    rows = {each["network"]: each for each in json.loads(path.read_text())["rows"]} if path.exists() else {}
    rows[row["network"]] = row
    write("onnx_catalogue", {"rows": [rows[name] for name in sorted(rows)]})


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_catalogue", description=__doc__)
    parser.add_argument("part", nargs="?", default="", help="only networks whose names contain this")
    parser.add_argument("--standard", action="store_true", help="files of standard operators alone")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of torch's exporter
    print(f"{'network':32} {'onnx bytes':>12} {'packed bytes':>12}  {'images':22} {'difference':>10} {'PyTorch':>10}")
    for name in list_models(args.part):
        with tempfile.TemporaryDirectory() as folder:
            row = compare(name, Path(folder), args.standard)
        size, packed, images, worst, chaos = list(row.values())[1:]
        print(f"{name:32} {size:>12,} {packed:>12,}  {images:22} {worst:10.1e} {chaos:10.1e}", flush=True)
        if not args.standard:
            keep(row)


if __name__ == "__main__":
    run_command(main)
