"""Checkpoint files: safetensors with metadata and a content hash; strict reading, atomic writing.

The metadata, strings as safetensors requires, are

- format: "esbnn"; format_version; esbnn_version that wrote the file; commit of the source tree
- kind: "latent", or "packed": bit-words and folded affines (esbnn_core.packed) and no latent weight
- weights: "binary", or "real" for what real_weights_ made; a file without this key is binary
- network, options (json), input_size (json): of a network that create_model built
- metric (json): what was saved with the network
- digest: sha256 over all of these and every tensor, which finds a flipped bit anywhere
"""

import hashlib
import json
import logging
import reprlib
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from esbnn_core.errors import DamagedError, InputError, reason_of
from esbnn_core.files import ROOT, file_sha256, write_atomically
from esbnn_core.packed.layers import is_packed
from esbnn_core.packed.real import is_folded
from esbnn_core.transforms.as_built import has_real_weights, spec_as_built
from esbnn_core.version import __version__

logger = logging.getLogger(__name__)
ZIP = b"PK\x03\x04"
"""Start of the zip archives that torch.save writes."""
FORMAT_VERSION = 1
WIDER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
}
"""dtypes that hold every value of another one."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: of the file.
        tensors: by name, on the CPU.
        metadata: without the digest.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def kind(self) -> str:
        """Either "latent" or "packed"."""
        return self.metadata["kind"]

    @property
    def weights(self) -> str:
        """Either "binary", or "real" for what real_weights_ made."""
        return self.metadata.get("weights", "binary")

    @property
    def network(self) -> str:
        """Name for create_model, "" for a network that it did not build."""
        return self.metadata["network"]

    @property
    def options(self) -> dict[str, Any]:
        """Options for create_model."""
        options: dict[str, Any] = json.loads(self.metadata["options"])
        return options

    @property
    def metric(self) -> dict[str, float]:
        """The metrics that were saved with the network."""
        metric: dict[str, float] = json.loads(self.metadata["metric"])
        return metric


def source_commit() -> str:
    """Commit of the source tree that this package is in, "" for an installed copy."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(
    model: nn.Module, path: str | Path, *, metric: Mapping[str, float] | None = None, commit: str | None = None
) -> str:
    """Write the model's state_dict, latent or packed, with what rebuilds the network.

    Args:
        model: from create_model, whose name and options are saved too, or any module, which reading then needs; so does
            one of create_model that was changed since, which one line says. One with an attribute `saved_options`
            has these written: what its tensors do not show. Of a wrapper of torch's (torch.compile, data parallel, a
            moving average) the network inside is saved.
        path: the file, replaced atomically.
        metric: e.g. {"top1": 87.5}.
        commit: default that of the source tree.

    Returns:
        sha256 of the file.

    Raises:
        InputError: a tensor that is not finite, or on the meta device, by name; a network whose real layers fold_real_
            folded; nothing is written then.
    """
    from safetensors.torch import save

    model = _unwrapped(model)
    if is_folded(model):
        raise InputError(
            f"a network for {path} must have the layers that it was packed with, got one that fold_real_ folded: save "
            f"it before folding, and fold it again after it is read"
        )
    check_values(model)
    # cloned: safetensors requires contiguous memory of its own for each name
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    _check_finite(tensors, str(path))
    spec, change = spec_as_built(model)
    if change:
        logger.warning("%s: %s, so that the file names no network and is read with one as model", path, change)
    metadata = {
        "format": "esbnn",
        "format_version": str(FORMAT_VERSION),
        "esbnn_version": __version__,
        "kind": "packed" if is_packed(model) else "latent",
        "weights": "real" if has_real_weights(model) else "binary",
        "network": spec.name if spec else "",
        "options": json.dumps(dict(spec.options) if spec else saved_options(model) or {}, sort_keys=True),
        "input_size": json.dumps(spec.input_size if spec else None),
        "metric": json.dumps(dict(metric or {}), sort_keys=True),
        "commit": source_commit() if commit is None else commit,
    }
    data = save(tensors, metadata={**metadata, "digest": _digest(tensors, metadata)})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch's wrappers, whose names begin with the wrapper's and would fit no other network."""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # of torch.compile; its class is costly to import
            model = model.get_submodule("_orig_mod")
        else:
            return model


def saved_options(model: nn.Module) -> dict[str, Any] | None:
    """What a network that is not of the catalogue wants a file to remember, None where it says nothing."""
    found = getattr(model, "saved_options", None)
    return None if found is None else dict(found)


def read_checkpoint(path: str | Path, *, sha256: str | None = None) -> Checkpoint:
    """Read and verify a file without building anything.

    Args:
        path: of the file.
        sha256: of the file, compared before a byte is parsed.

    Raises:
        InputError: the file is missing, damaged, of another format or version, or holds a number that is not finite.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise InputError(f"checkpoint {path} must be a file, got a folder: give the file in it, weights.safetensors")
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist: check the path")
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise InputError(f"checkpoint {path} must have sha256 {sha256}, got {found}: fetch it again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError, UnicodeDecodeError) as error:
        if is_torch_file(path):
            raise InputError(
                f"checkpoint {path} must be a safetensors file, got a file of torch.save: give a run's checkpoint as "
                f"ckpt_path, or the weights.safetensors beside it; an official file is read by load_official"
            ) from error
        raise DamagedError(
            f"checkpoint {path} is not a whole safetensors file ({reason_of(error)}): write or fetch it again"
        ) from error
    if metadata.get("format") != "esbnn":
        raise InputError(f"checkpoint {path} is not an esbnn file: save_checkpoint writes those")
    found, writer = (str(metadata.get(key))[:40] for key in ("format_version", "esbnn_version"))
    if found != str(FORMAT_VERSION):
        raise InputError(
            f"format version of checkpoint {path} must be {FORMAT_VERSION}, got {found}: read it with the esbnn "
            f"version {writer} that wrote it"
        )
    _check_metadata(path, metadata)
    digest = metadata.pop("digest", "")
    if digest != _digest(tensors, metadata):
        raise DamagedError(
            f"checkpoint {path} is damaged, its content does not have the sha256 it was written with: fetch it again"
        )
    _check_finite(tensors, str(path))
    return Checkpoint(path, tensors, metadata)


def stored_dtypes(path: Path) -> set[str]:
    """Types in the header of a .safetensors file ("F32", "F64"), without its tensors; none of a file that has none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
            return {str(entry["dtype"]) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return set()  # read_checkpoint says what is wrong with it


def is_torch_file(path: Path) -> bool:
    """Whether torch.save wrote the file: a zip archive, or a pickle of its old format."""
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    return start == ZIP or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into the model, all or none, each exactly and in the model's dtype.

    Raises what check_state raises; the model is then as it was.
    """
    check_state(model, tensors, source)
    model.load_state_dict(tensors, strict=True)


def is_dense(value: object) -> bool:
    """Whether it is a tensor that holds each of its numbers, on any device: neither sparse nor quantized."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def check_state(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that the tensors are the model's, by name, shape and dtype, and finite.

    A dtype that holds every value of the tensor's own fits too: float32 and float64 for half precision, float64 for
    float32.

    Args:
        model: that the tensors are for.
        tensors: by name.
        source: where they come from, for the message.

    Raises:
        InputError: a missing, extra, reshaped, re-typed or not finite tensor, named.
    """
    if faults := find_misfits(model.state_dict(), tensors, _misfit, most=5):
        raise InputError(
            f"checkpoint {source} does not fit the network: {faults}: build the network with the options the file was "
            f"saved with"
        )
    _check_finite(tensors, source)


def _shape_misfit(got: Tensor, want: Tensor) -> str:
    return "" if got.shape == want.shape else f"shape {tuple(got.shape)} for {tuple(want.shape)}"


def _misfit(got: Tensor, want: Tensor) -> str:
    if got.shape != want.shape:
        return _shape_misfit(got, want)
    if want.dtype not in (got.dtype, *WIDER.get(got.dtype, ())):
        return f"dtype {got.dtype} for {want.dtype}"
    if got.layout != want.layout or (got.is_meta and not want.is_meta):
        return "no values" if got.is_meta else f"layout {got.layout}"
    return ""


def find_misfits(
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    misfit: Callable[[Tensor, Tensor], str] = _shape_misfit,
    most: int = 3,
) -> str:
    """The first tensors that are missing, not expected, or unlike those of a state, and how many more; "" for none.

    Args:
        state: of the network.
        tensors: that it is to take over.
        misfit: (tensor, that of the state) -> what the tensor has that does not fit, "" for nothing.
        most: how many are named.
    """
    faults = [f"{name} is missing" for name in state if name not in tensors]
    faults += [f"{name} is not expected" for name in tensors if name not in state]
    pairs = [(name, misfit(tensors[name], want)) for name, want in state.items() if name in tensors]
    faults += [f"{name} has {found}" for name, found in pairs if found]
    more = f" and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more


def _check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    for key in ("kind", "network", "options", "input_size", "metric", "commit"):
        if key not in metadata:
            raise InputError(f"checkpoint {path} has no {key} in its metadata: write it again with save_checkpoint")
    if metadata["kind"] not in ("latent", "packed"):
        raise InputError(
            f"kind of checkpoint {path} must be latent or packed, got {reprlib.repr(metadata['kind'])}: write it again"
        )
    if metadata.get("weights", "binary") not in ("binary", "real"):
        raise InputError(
            f"weights of checkpoint {path} must be binary or real, got {reprlib.repr(metadata['weights'])}: write it "
            f"again"
        )
    for key in ("options", "metric"):
        try:
            is_object = isinstance(json.loads(metadata[key]), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise InputError(
                f"{key} of checkpoint {path} must be a json object, got {reprlib.repr(metadata[key])}: write it again"
            )


def check_values(model: nn.Module) -> None:
    """Raise InputError for a network on the meta device, from and into which torch copies nothing."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise InputError(
                f"tensor {name} of the network is on the meta device and has no values: build it on another device"
            )


def _is_finite(tensor: Tensor) -> bool:
    # what is not finite makes the sum so, which takes a fiftieth of the time; a sum that overflows decides nothing
    summed = tensor.dtype.itemsize > 1 and bool(tensor.sum().isfinite())  # torch does not sum 8 bits
    return summed or bool(tensor.isfinite().all())


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise InputError(f"tensor {name} of {source} holds NaN or infinity: take a checkpoint from before that")
