"""sha256.json: the checksums of a folder that diffusers wrote, whose own files have none."""

import json
from pathlib import Path

from esbnn_core.errors import DamagedError
from esbnn_core.files import file_sha256, write_atomically

SUMS = "sha256.json"


def write_sums(folder: str | Path, *inside: str) -> None:
    """Write the sha256 of the files in a folder, by path below it.

    Args:
        folder: whose files are listed.
        *inside: folders in it whose files are listed too.
    """
    root = Path(folder)
    files = [path for place in (root, *(root / name for name in inside)) if place.is_dir() for path in place.iterdir()]
    kept = sorted(path for path in files if path.is_file() and path.name != SUMS and not path.name.startswith("."))
    sums = {path.relative_to(root).as_posix(): file_sha256(path) for path in kept}
    write_atomically(root / SUMS, (json.dumps(sums, indent=2) + "\n").encode())


def check_sums(folder: str | Path) -> None:
    """Compare the files of a folder with the sha256.json in it; a folder without one is taken as it is.

    Raises:
        DamagedError: a file with other bytes than were written, or a list that cannot be read.
    """
    listed = Path(folder) / SUMS
    if not listed.is_file():
        return
    try:
        sums = json.loads(listed.read_bytes())
        given = {Path(folder) / str(name): str(value) for name, value in sums.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{listed} is damaged, it is not a json object: write or fetch the folder again") from error
    for path, value in given.items():
        if not path.is_file() or file_sha256(path) != value:
            raise DamagedError(
                f"{path} does not have the sha256 in {listed}: write or fetch the folder again, or remove {SUMS} if "
                f"you changed it"
            )
