"""What an ONNX file of this project holds beside the network, and how a damaged or foreign one is told apart.

The metadata (strings, metadata_props in ONNX) are

- esbnn_format; esbnn_version that wrote the file; esbnn_operators: "custom", or "standard" for standard ones alone
- network, options (json), input_size (json): of a network that create_model built
- classes (one name a line), mean and std (json, of the channels of an image in 0..1): where the caller gave them
- esbnn_digest: sha256 of the file with this value as zeros, which finds a flipped bit anywhere
"""

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from esbnn_core.errors import DamagedError, InputError

FORMAT_VERSION = "1"
DIGEST = "esbnn_digest"
BLANK = "0" * 64
"""The digest's value while the digest is computed."""


def require(*packages: str) -> None:
    """Raise InputError naming the first of `packages` that cannot be imported."""
    for name in packages:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                f"ONNX files need the package {name} ({error}): install the extra, pip install 'esbnn[onnx]'"
            ) from error


def seal(data: bytes) -> bytes:
    """The file's bytes with their digest in the place of BLANK, which must be in them once."""
    blank = BLANK.encode()
    assert data.count(blank) == 1
    return data.replace(blank, hashlib.sha256(data).hexdigest().encode())


def read_file(path: str | Path) -> tuple[bytes, Mapping[str, str]]:
    """The bytes and the metadata of a file that export_onnx wrote.

    Raises:
        InputError: the file is missing, damaged, of another program or of another version of the format.
    """
    require("onnx")
    import onnx

    path = Path(path)
    if not path.is_file():
        raise InputError(f"network {path} must be an ONNX file, got no file: check the path")
    data = path.read_bytes()
    try:
        model: Any = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's, whose class depends on its implementation
        raise DamagedError(f"network {path} is not a whole ONNX file ({error}): write or fetch it again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "esbnn_format" not in metadata:
        raise InputError(
            f"network {path} is not an ONNX file of esbnn: esbnn export writes those, onnxruntime.InferenceSession "
            f"runs any other"
        )
    if metadata["esbnn_format"] != FORMAT_VERSION:
        writer, found = metadata.get("esbnn_version", "?")[:40], metadata["esbnn_format"][:40]
        raise InputError(
            f"format of network {path} must be {FORMAT_VERSION}, got {found}: run it with the esbnn version {writer} "
            f"that wrote it, or export it again"
        )
    digest = metadata.get(DIGEST, "").encode()
    blanked = data.replace(digest, BLANK.encode(), 1) if len(digest) == len(BLANK) else b""
    if hashlib.sha256(blanked).hexdigest().encode() != digest:
        raise DamagedError(
            f"network {path} is damaged or was changed, its content does not have the sha256 it was written with: "
            f"export or fetch it again"
        )
    return data, metadata
