"""Files that ask for more than they hold: refused on their shapes, without the memory that they ask for."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from esbnn_core import InputError, create_model, load_checkpoint, pack_, save_checkpoint
from esbnn_core.checkpoint import format as file_format
from esbnn_core.checkpoint.format import read_checkpoint


def rewritten(path: Path, **options: Any) -> Path:
    """The file with other options, whose digest is right."""
    held = read_checkpoint(path)
    metadata = {**held.metadata, "options": json.dumps({**held.options, **options})}
    tensors = load_file(path)
    made = path.with_name("hostile.safetensors")
    made.write_bytes(save(tensors, metadata={**metadata, "digest": file_format._digest(tensors, metadata)}))
    return made


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{"num_classes": 30_000_000}, {"in_channels": 2_000_000}, {"tau": 16}])
def test_options_that_ask_for_other_shapes_take_no_memory(
    tmp_path: Path, packed: bool, options: dict[str, int]
) -> None:
    model = create_model("es_reactnet_resnet8", num_classes=10)
    path = tmp_path / "net.safetensors"
    save_checkpoint(pack_(model) if packed else model, path)
    assert torch.equal(load_checkpoint(rewritten(path)).fc.weight, load_checkpoint(path).fc.weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"does not fit the network: .* has shape .* for"):
        load_checkpoint(rewritten(path, **options))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 64 << 20
