"""Which run a folder holds: what it trains, its configs by what they say, as kept in json from its start."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from esbnn_core.files import file_sha256


def config_digests(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The beginning of each config's sha256, by its name below `root`."""
    return {name: file_sha256(root / name)[:16] for name in names}


def apart(met: object, wanted: Mapping[str, Any]) -> str:
    """The keys in which two identities differ, "" for one and the same."""
    if met == wanted:
        return ""
    differing = [key for key in wanted if not isinstance(met, Mapping) or met.get(key) != wanted[key]]
    return ", ".join(differing) or "more"
