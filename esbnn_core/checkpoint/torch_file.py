"""Files of torch.save, read as plain tensors and held against the checksums inside, which torch.load ignores."""

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import torch

from esbnn_core.checkpoint.format import ZIP
from esbnn_core.errors import DamagedError, reason_of

_BLOCK = 1 << 20

_FOLDER = 0x10
"""The bit of a record's attributes that marks a folder, in the zip format."""


def load_torch_file(path: str | Path, what: str, fix: str) -> object:
    """What a file of torch.save holds, on the CPU: tensors and plain containers, no other pickled object.

    Every record of the zip archive that torch.save writes has a CRC-32, so a flipped bit is found. Files of torch
    before 1.6 are bare pickles without a checksum: a warning says so, because only the sha256 of
    the catalogue finds it.

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
            checked = file.read(len(ZIP)) == ZIP
            if checked:
                _check_records(file)
            file.seek(0)
            found: object = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything: struct.error, IndexError, AssertionError, ...
        raise DamagedError(f"{what} {path} cannot be read as plain tensors ({_reason(error)}): {fix}") from error
    if not checked:
        warnings.warn(
            f"{what} {path} has no checksum, because a torch before 1.6 wrote it, so a damaged number in it is not "
            f"noticed: compare its sha256 with that of its source, and save it anew with torch.save",
            stacklevel=2,
        )
    return found


def _reason(error: Exception) -> str:
    """A few words of an error; of torch's refusal of other objects not the advice to read them all the same."""
    _, found, refused = str(error).partition("WeightsUnpickler error:")
    return reason_of(ValueError(refused) if found else error).split(". ")[0]


def _check_records(file: IO[bytes]) -> None:
    """Compare every record with its CRC-32, as zipfile does at its end. Raises what zipfile raises, or ValueError."""
    with zipfile.ZipFile(file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                # torch never compresses; a few bytes could ask for any amount of memory
                raise ValueError(f"record {record.filename} is compressed")
            if record.external_attr & _FOLDER and not record.is_dir():
                # torch's reader takes the name for a folder's and leaves the tensor as the memory was
                raise ValueError(f"record {record.filename} is marked as a folder")
            found = 0
            with archive.open(record) as data:
                while block := data.read(_BLOCK):
                    found = zlib.crc32(block, found)
            if found != record.CRC:
                raise ValueError(f"record {record.filename} does not have its checksum")
