"""Which implementation serves a device: what the CPU and the CUDA backend share about choosing and reporting it."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from esbnn_core.errors import InputError

VARIABLE = "ESBNN_BACKEND"
"""Environment variable that forces a backend: REFERENCE, or a path of the CPU library."""

REFERENCE = "naive"
"""The user's word for the plain torch implementation, esbnn_core.kernels.reference."""


@dataclass(frozen=True)
class Status:
    """What serves the binary operators on a kind of device.

    Attributes:
        serving: name of the path in use, or REFERENCE.
        reason: why that one.
        paths: every path, best first, with whether this machine has it.
    """

    serving: str
    reason: str
    paths: tuple[tuple[str, bool], ...] = ()


def forced() -> str:
    """The backend that the environment variable names, "" without one."""
    return os.environ.get(VARIABLE, "")


def forced_reference() -> Status | None:
    """The status where the environment variable asks for the reference, else None."""
    return Status(REFERENCE, f"{VARIABLE}={REFERENCE}") if forced() == REFERENCE else None


def fall_back(tensors: str, reason: str, paths: tuple[tuple[str, bool], ...] = ()) -> Status:
    """The reference's status, after one line on stderr that names the `tensors` it serves and the reason."""
    print(f"esbnn: binary operators on {tensors} run as plain torch: {reason}", file=sys.stderr)
    return Status(REFERENCE, reason, paths)


def select(usable: Sequence[str]) -> str:
    """The path to use: the one that the environment variable names, else the first of `usable`.

    Raises:
        InputError: the variable names a path that is not usable here.
    """
    wanted = forced()
    if wanted and wanted not in usable:
        known = ", ".join([REFERENCE, *usable])
        raise InputError(f"{VARIABLE} must be one of {known} on this machine, got {wanted}")
    return wanted or usable[0]
