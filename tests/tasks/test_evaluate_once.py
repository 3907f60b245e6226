"""An evaluation hashes its file once and parses it once, for every kind of file; a request is what the parser makes."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from esbnn_core import create_model, save_checkpoint
from esbnn_core.checkpoint.catalogue import FOLDER
from esbnn_core.checkpoint.official import to_official
from tasks.evaluate import EvaluateRequest, evaluate
from tasks.evaluate.command import _make_parser, _make_request
from tests.helpers.super_resolution.tiny import OPTIONS, make_unet, write_sets

NAME = "es_reactnet_resnet8_fashion"
RELEASED = FOLDER / NAME / "packed.safetensors"


class Counter:
    """How often the file at `path` is opened by Python, and by safetensors, whose files Python does not open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.opened, self.parsed = "", 0, 0
        safe_open = safetensors.safe_open

        def count_parse(path: Any, **options: Any) -> Any:
            self.parsed += self.watches(path)
            return safe_open(path, **options)

        def count_open(event: str, words: tuple[Any, ...]) -> None:
            self.opened += event == "open" and self.watches(words[0])

        monkeypatch.setattr(safetensors, "safe_open", count_parse)
        sys.addaudithook(count_open)  # cannot be removed; it counts nothing once the path is gone

    def watches(self, path: object) -> bool:
        return bool(self.path) and isinstance(path, str | Path) and os.path.abspath(path) == self.path

    def reset(self, path: Path) -> None:
        self.path, self.opened, self.parsed = str(path.absolute()), 0, 0


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    made = Counter(monkeypatch)
    yield made
    made.path = ""


def test_the_counter_counts(counter: Counter) -> None:
    counter.reset(RELEASED)
    with open(RELEASED, "rb"), safetensors.safe_open(RELEASED, framework="pt"):
        RELEASED.read_bytes()
    assert (counter.opened, counter.parsed) == (2, 1)


@pytest.mark.parametrize("target", [NAME, str(RELEASED)])
@pytest.mark.parametrize("model", [None, "es_reactnet_resnet8"])
def test_a_released_file_is_hashed_once_and_parsed_once(
    target: str, model: str | None, counter: Counter, data_root: str
) -> None:
    by_path = {"dataset": "fashion_mnist_mini", "model": model} if target != NAME else {}
    counter.reset(RELEASED)
    found = evaluate(EvaluateRequest(target, data=data_root, limit=16, **by_path))
    assert (counter.opened, counter.parsed) == (1, 1)  # the hash; the tensors
    assert found["images"] == 16 and found["bytes"] == RELEASED.stat().st_size and found["backend"] == "packed"
    entry = json.loads((FOLDER / "manifest.json").read_text())["checkpoints"]
    assert found["sha256"] == next(one["sha256"] for one in entry if one["name"] == NAME)


def test_an_official_file_is_hashed_once_and_parsed_once(counter: Counter, tmp_path: Path) -> None:
    path = tmp_path / "recu.pth"
    torch.save({"state_dict": to_official(create_model("recu_resnet20"))}, path)
    request = EvaluateRequest(
        str(path), model="recu_resnet20", num_classes=10, dataset="generated", image_size=32, limit=8
    )
    counter.reset(path)
    assert evaluate(request)["tensors"] == len(to_official(create_model("recu_resnet20")))
    assert (counter.opened, counter.parsed) == (2, 0)  # the hash; torch.load


def test_a_file_of_another_task_is_hashed_once_and_parsed_once(counter: Counter, tmp_path: Path) -> None:
    path, sets = tmp_path / "sr.safetensors", write_sets(tmp_path / "sets")
    digest = save_checkpoint(make_unet(), path)
    config = tmp_path / "super_resolution" / "tiny.yaml"
    config.parent.mkdir()
    unet = json.dumps(OPTIONS)
    config.write_text(f"model: {{unet: {unet}, num_inference_steps: 2}}\ndata: {{patch: 16, test: [small]}}\n")
    counter.reset(path)
    found = evaluate(EvaluateRequest(str(path), config=str(config), data=str(sets), dataset="odd"))
    # the hash, and the types in the header, which set the precision of the run; the tensors
    assert (counter.opened, counter.parsed) == (2, 1) and found["sha256"] == digest


def test_the_parser_makes_a_request() -> None:
    assert _make_request(_make_parser().parse_args(["net.pth", "--device", "cpu", "--workers", "0"])) == (
        EvaluateRequest("net.pth")
    )
    words = ["net.pth", "--mean", "0.1", "0.2", "0.3", "--num-classes", "7", "--print-entry", "new", "--device", "cpu"]
    assert _make_request(_make_parser().parse_args([*words, "--workers", "2"])) == EvaluateRequest(
        "net.pth", mean=(0.1, 0.2, 0.3), num_classes=7, new_entry="new", workers=2
    )
