"""Which run a folder holds: what it trains and its configs by content, kept as json from its start."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from esbnn_core.lit.recipes import read_config


def digest_configs(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The first 16 digits of the sha256 of what each config says, with its base, by its name below `root`."""

    def digest(name: str) -> str:
        text = json.dumps(read_config(root / name), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    return {name: digest(name) for name in names}


def list_differences(found: object, wanted: Mapping[str, Any]) -> str:
    """The keys in which two identities differ, "" for equal ones."""
    if found == wanted:
        return ""
    differing = [key for key in wanted if not isinstance(found, Mapping) or found.get(key) != wanted[key]]
    return ", ".join(differing) or "more"
