"""From flat options, as tests list them, to the value objects that units take."""

from dataclasses import fields
from typing import Any

from esbnn_core.layers import Expansion
from esbnn_core.units import UnitStyle


def unit_options(**flat: Any) -> dict[str, Any]:
    """Arguments of BinaryUnit, with the fields of UnitStyle and Expansion gathered in `style` and `expansion`."""
    return expansion_options(style=UnitStyle(**_take(flat, UnitStyle)), **flat)


def expansion_options(**flat: Any) -> dict[str, Any]:
    """Arguments of TimestepUnit or RealConv, with the fields of Expansion gathered in `expansion`."""
    return {"expansion": Expansion(**_take(flat, Expansion)), **flat}


def _take(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """Remove the fields of a dataclass from the options and return them."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}
