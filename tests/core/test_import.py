"""The core imports with torch alone, touches no GPU, compiles nothing, and writes to no tensor behind autograd."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import esbnn_core

ROOT = Path(__file__).parents[2]
OPTIONAL = ["lightning", "torchvision", "mmdet", "mmengine", "mmcv", "diffusers", "timm", "safetensors", "jsonargparse"]
OPTIONAL += ["onnx", "onnxscript", "onnx_ir", "onnxruntime"]
HEAD = f"""
import os, sys
for name in {OPTIONAL}:
    sys.modules[name] = None
"""


def run(code: str, **variables: str) -> str:
    command, environment = [sys.executable, "-c", HEAD + code], {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_import_and_use_need_torch_alone(tmp_path: Path) -> None:
    out = run(
        """
import torch
before = set(sys.modules)  # torch itself may look for the bindings of CUDA
sys.modules["cuda.bindings"] = None
import esbnn_core
assert hasattr(torch.ops.esbnn, "binary_conv2d") and hasattr(torch.ops.esbnn, "binary_linear")  # for exported files
import esbnn_core.packed, esbnn_core.transforms.binarize, esbnn_core.units.conv
from esbnn_core.kernels import cuda
assert not torch.cuda.is_initialized()
assert "triton" not in sys.modules
assert {name for name in set(sys.modules) - before if name.split(".")[0] == "cuda"} <= {"cuda.bindings"}
assert os.listdir(os.environ.pop("ESBNN_CACHE")) == []  # importing builds nothing
model = esbnn_core.create_model("es_reactnet_resnet8", num_classes=3)
x = torch.randn(1, 3, 12, 12)
want = model.eval()(x)
assert torch.equal(esbnn_core.transforms.pack.pack_(model)(x), want)
assert not torch.cuda.is_initialized()
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"numba", "ninja", "setuptools", "torchvision", "safetensors"}))
print(esbnn_core.__version__, len(esbnn_core.list_models()))
""",
        ESBNN_CACHE=str(tmp_path),
    )
    first, second = out.strip().splitlines()
    assert first == "[]"
    version, count = second.split()
    assert version[0].isdigit() and int(count) >= 24


@pytest.mark.parametrize("name", ["torchvision", "safetensors"])
def test_the_block_blocks(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        run(f"import {name}")


def test_the_public_names_exist() -> None:
    for name in esbnn_core.__all__:
        assert getattr(esbnn_core, name) is not None
    assert issubclass(esbnn_core.InputError, ValueError)


def data_writes(source: str) -> list[int]:
    """Lines that assign to something reached through `.data` or call a method of it that ends in an underscore."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.AST] = []
        if isinstance(node, ast.Assign):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_"):
            targets = [node.func.value]
        if any(isinstance(n, ast.Attribute) and n.attr == "data" for t in targets for n in ast.walk(t)):
            lines.append(node.lineno)
    return lines


def test_no_write_goes_round_autograd() -> None:
    assert data_writes("w.data = 1\nw.data[0] = 2\nw.data += 3\nm.w.data.clamp_(-1, 1)\ny = w.data\n") == [1, 2, 3, 4]
    sources = sorted(Path(esbnn_core.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    for path in sources:
        assert data_writes(path.read_text()) == [], path
