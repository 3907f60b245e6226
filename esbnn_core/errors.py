"""The exceptions that a person is meant to read, and the checks that raise them most often."""

import re
import reprlib
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

MOST = 2**31 - 1
"""No count of classes, channels, pixels or copies is larger."""


class InputError(ValueError):
    """A wrong input. The message is one sentence: the thing, the rule, the value given and how to fix it.

    The command lines print the sentence alone and exit with 2. Library users catch it as a ValueError.
    """


class DamagedError(InputError):
    """A file that is incomplete, or not what its writer wrote. Another copy of it may be intact."""


class TrainingError(RuntimeError):
    """Training cannot go on. The message is one sentence: the step, the first layer at fault and what to try."""


def find_sentence(error: BaseException) -> str | None:
    """What a command prints of an error that a person can do something about; None for a fault of the program.

    Besides this project's own: files that cannot be read or written, memory that is not there, and a batch of one image
    for a network that normalizes over images.
    """
    if isinstance(error, InputError | TrainingError):
        return str(error)
    text = str(error)
    if isinstance(error, PermissionError) and error.filename is not None:
        return (
            f"{str(error.filename)[:400]} may not be read or written by this user: change its rights, or name another"
        )
    if isinstance(error, OSError):
        return (text or type(error).__name__)[:500]  # a name in it may be of any length
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        asked = re.search(r"(?:tried|Tried) to allocate ([\d.]+ ?\w+)", text)
        amount = f", {asked[1]} are asked for" if asked else ""
        return f"there is not enough memory{amount}: give smaller numbers, of images a batch or pixels for example"
    if isinstance(error, ValueError) and "Expected more than 1 value per channel when training" in text:
        return "a training batch must have at least 2 images for this network's norms, got 1: set data.batch_size"
    return None


def refuse(error: Exception, find: Callable[[Exception], str | None] = find_sentence) -> int:
    """Print what a command says of an error on stderr; returns the exit code. Raises a fault of the program again.

    Args:
        error: that the command caught.
        find: the sentence of an error, None for a fault of the program.
    """
    text = find(error)
    if text is None:
        raise error
    print(f"error: {text}", file=sys.stderr)
    return 2


def reason_of(error: BaseException) -> str:
    """What an error of a library says, for a sentence of ours: its first line, at most 160 characters of it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return textwrap.shorten((text.splitlines() or [type(error).__name__])[0].rstrip(" .:"), 160)


def check_choice(name: str, value: object, known: Iterable[object]) -> None:
    """Refuse a value that is not one of those known.

    Args:
        name: what is chosen, for the error alone.
        value: the choice.
        known: the values allowed, in the order in which the error lists them.

    Raises:
        InputError: `value` is not in `known`.
    """
    choices = list(known)
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {reprlib.repr(value)}")


def check_factors(tau: int, groups: int) -> None:
    """Raise InputError unless tau and groups are whole numbers of at least 1."""
    check_counts(tau=tau, groups=groups)


def check_counts(**counts: int) -> None:
    """Raise InputError that names the first of `counts` that is not a whole number from 1 to MOST."""
    check_at_least(1, **counts)


def check_at_least(least: int, **values: int) -> None:
    """Raise InputError that names the first of `values` that is not a whole number from `least` to MOST.

    Args:
        least: allowed.
        **values: by name; two underscores in a name are written as a point: data__batch_size.
    """
    for name, value in values.items():
        shown = name.replace("__", ".")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{shown} must be a whole number of at least {least}, got {reprlib.repr(value)}")
        if value > MOST:
            raise InputError(f"{shown} must be at most {MOST:,}, got {reprlib.repr(value)}")


def check_workers(name: str, value: int) -> None:
    """Raise InputError unless `value` is a number of processes that one machine can start: 0 to 1,024."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1024:
        raise InputError(f"{name} must be a whole number from 0 to 1,024, got {reprlib.repr(value)}")


def check_output_folder(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be made or written to, before hours of work whose results go there; makes nothing.

    Args:
        folder: to write to.
        option: that names it, for the message.

    Raises:
        InputError: a file of that name or above it, or a folder that takes no file.
    """
    try:
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be written to ({error.strerror}): name another folder") from error
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} must be a folder, got the file {folder}: name another")
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix="."):
            pass
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be written to ({error.strerror}): name another folder") from error
