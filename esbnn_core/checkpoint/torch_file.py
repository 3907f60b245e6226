"""Files of torch.save, read as plain tensors and held against the checksums inside, which torch.load ignores."""

import zipfile
import zlib
from pathlib import Path
from typing import IO

import torch

from esbnn_core.checkpoint.format import ZIP
from esbnn_core.errors import DamagedError

_BLOCK = 1 << 20


def load_torch_file(path: str | Path, what: str, fix: str) -> object:
    """What a file of torch.save holds, on the CPU: tensors and plain containers, no other pickled object.

    Every record of the zip archive that torch.save writes has a CRC-32, so a flipped bit is found. Files of torch
    before 1.6 are bare pickles without a checksum: of those only the sha256 of the catalogue finds it.

    Args:
        path: of an existing file.
        what: the file in messages, e.g. "official file".
        fix: what to do about a file that cannot be read, for the message.

    Raises:
        DamagedError: a file that is damaged or cut off, of another kind, or with more than plain tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(len(ZIP)) == ZIP:
                _check_records(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything: struct.error, IndexError, AssertionError, ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise DamagedError(f"{what} {path} cannot be read as plain tensors ({reason}): {fix}") from error


def _check_records(file: IO[bytes]) -> None:
    """Compare every record with its CRC-32, as zipfile does at its end. Raises what zipfile raises, or ValueError."""
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                # torch never compresses; a few bytes could ask for any amount of memory
                raise ValueError(f"record {record.filename} is compressed")
            found = 0
            with archive.open(record) as data:
                while block := data.read(_BLOCK):
                    found = zlib.crc32(block, found)
            if found != record.CRC:
                raise ValueError(f"record {record.filename} does not have its checksum")
