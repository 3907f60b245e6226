"""How large is a packed file, and what does importing cost? (targets S1, S2)

python -m benchmarks.speed.sizes [--names es_bnext_tiny ...]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command import run_command
from benchmarks.speed.parts import anneal_
from benchmarks.timing import write
from esbnn_core import create_model, pack_
from esbnn_core.checkpoint.network import save_checkpoint
from esbnn_core.counting import count
from esbnn_core.models.registry import model_spec

NAMES = ("es_bnext_tiny", "es_reactnet_resnet18", "es_binaryvit")
IMPORT = """
import sys, time, torch
start = time.perf_counter()
import esbnn_core
print(time.perf_counter() - start, torch.cuda.is_initialized())
"""


def size(name: str) -> dict[str, Any]:
    """One row: bytes of the packed file against binary weights / 8 + 4 bytes for each real parameter."""
    model = anneal_(create_model(name))
    spec = model_spec(model)
    assert spec is not None
    counted = count(model, spec.input_size)
    least = counted.binary_params / 8 + 4 * (counted.params - counted.binary_params)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.safetensors"
        save_checkpoint(pack_(model), path)
        stored = path.stat().st_size
    return {
        "network": name,
        "file bytes": stored,
        "binary / 8 + 4 x real": round(least),
        "allowed": round(least * 1.02 + 16 * 1024),
        "file over least": round(stored / least, 4),
    }


def imports() -> list[float]:
    """Seconds that `import esbnn_core` takes beyond torch, in five fresh processes.

    Raises:
        SystemExit: it initialised CUDA.
    """
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        taken, cuda = done.stdout.split()
        if cuda != "False":
            raise SystemExit("import esbnn_core must not initialise CUDA: find the module that uses a device at import")
        seconds.append(round(float(taken), 3))
    return sorted(seconds)


def main() -> None:
    """Run, print, and write benchmarks/results/sizes.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=NAMES)
    args = parser.parse_args()
    rows = [size(name) for name in args.names]
    seconds = imports()
    for row in rows:
        print(row)
    print(f"import esbnn_core beyond torch: {seconds} s")
    print(write("sizes", {"rows": rows, "import seconds": seconds}))


if __name__ == "__main__":
    run_command(main)
