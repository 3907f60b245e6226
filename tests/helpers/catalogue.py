"""A catalogue's entry, and how a test writes a catalogue."""

import json
from pathlib import Path
from typing import Any

GIVEN: dict[str, Any] = {
    **{"name": "es_tiny", "task": "classification", "network": "es_reactnet_resnet8", "options": {"tau": 2}},
    **{"dataset": "fashion_mnist", "split": "test", "metric": "top1", "value": 87, "tolerance": 0.1},
    **{"file": "es_tiny.safetensors", "url": None, "access": "file", "sha256": "0a" * 32, "bytes": 12},
    **{"licence": "Apache-2.0", "container": "safetensors", "keys": "", "config": "", "command": "python -m x"},
    **{"source": "", "note": ""},
}


LINKED: dict[str, Any] = {"file": None, "url": "https://host/es.pth", "access": "direct", "sha256": "", "bytes": None}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"checkpoints": list(entries)}))
    return path
