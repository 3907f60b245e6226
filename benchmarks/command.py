"""What the commands of this folder share: numbers of at least 1, and errors of one sentence with exit code 2."""

import argparse
from collections.abc import Callable

from esbnn_core.errors import InputError, refuse
from esbnn_core.lit.children import passes_sigterm_on


def positive(text: str) -> int:
    """The whole number of an option. Raises ArgumentTypeError, which argparse prints, for anything below 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def run_command(main: Callable[[], None]) -> None:
    """Run a command. What a person can do something about is one sentence on stderr and exit code 2."""
    try:
        with passes_sigterm_on():
            main()
    except SystemExit as stop:
        if not isinstance(stop.code, str):
            raise
        raise SystemExit(refuse(InputError(stop.code))) from None
    except Exception as error:
        raise SystemExit(refuse(error)) from None
