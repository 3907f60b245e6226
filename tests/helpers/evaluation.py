"""Calls of tasks.evaluate over 300 images and a small checkpoint."""

import hashlib
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.datasets import FashionMNIST

from esbnn_core import create_model, load_checkpoint, pack_, save_checkpoint
from tasks.classification.datasets import EMBEDDED
from tasks.evaluate import dataset_sizes as evaluation_sizes
from tasks.evaluate.command import main
from tests.helpers.catalogue import GIVEN

ROOT = Path(__file__).parents[2]


QUIET = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 300 images of these tests are the whole set."""
    monkeypatch.setitem(evaluation_sizes.SIZES, ("fashion_mnist", "test"), 300)


def run(*words: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, words), *QUIET])
    out = capsys.readouterr()
    return code, out.out, out.err


def failed(*words: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of an error with exit code 2, and nothing on stdout."""
    code, out, err = run(*words, capsys=capsys)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(lines)) == (2, "", 1), err
    assert err.splitlines()[-1] == lines[0]
    return lines[0]


def stirred(model: nn.Module) -> nn.Module:
    """BatchNorms that do not start as the identity, so that the answers differ."""
    torch.manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(torch.randn(32, 1, 28, 28))
    return model.eval()


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root of fashion_mnist with 300 of the embedded test images."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for kind, head, each in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
        data = lzma.decompress((EMBEDDED / f"t10k-{kind}-ubyte.xz").read_bytes())
        fewer = data[:4] + (300).to_bytes(4, "big") + data[8 : head + 300 * each]
        for part in ("t10k", "train"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(fewer)
    return str(root)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed classifier of our own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(3)
    model = stirred(create_model("es_reactnet_resnet8", in_channels=1, num_classes=10, tau=2))
    save_checkpoint(pack_(model), folder / "es_tiny.safetensors")
    return folder


@pytest.fixture(scope="module")
def right(home: Path, data_root: str) -> float:
    """Top-1 of it, by torchvision's own arrays."""
    images = FashionMNIST(data_root, train=False)
    x = ((images.data.float() / 255 - 0.2860) / 0.3530)[:, None]
    with torch.no_grad():
        found = load_checkpoint(home / "es_tiny.safetensors")(x).argmax(1)
    return 100 * float((found == images.targets).float().mean())


def own(home: Path, **changes: Any) -> dict[str, Any]:
    data = (home / "es_tiny.safetensors").read_bytes()
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return {**GIVEN, **facts, **changes}
