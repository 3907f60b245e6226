"""Which run a folder holds: what it trains and its configs by content, kept as json from its start."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from esbnn_core.files import file_sha256


def digest_configs(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The first 16 digits of each config's sha256, by its name below `root`."""
    return {name: file_sha256(root / name)[:16] for name in names}


def list_differences(found: object, wanted: Mapping[str, Any]) -> str:
    """The keys in which two identities differ, "" for equal ones."""
    if found == wanted:
        return ""
    differing = [key for key in wanted if not isinstance(found, Mapping) or found.get(key) != wanted[key]]
    return ", ".join(differing) or "more"
