"""What a person reads of an exception: our sentence alone, or what Lightning says of an option that it refuses.

And what a script reads of a run that a signal ended: an exit code.
"""

import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonargparse
import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from esbnn_core.errors import InputError, TrainingError, find_sentence

_LIGHTNING = Path(L.__file__).parent
_JSONARGPARSE = Path(jsonargparse.__file__).parent


def sentence(error: BaseException) -> str | None:
    """What a command prints of an error, None for a fault of the program.

    The error of a data worker arrives with its whole traceback as the text.
    """
    text = find_sentence(error)
    if text is None:
        return refusal(error) or None
    return text.rsplit("Error: ", 1)[-1].strip() if text.startswith("Caught ") else text


def refusal(error: BaseException) -> str:
    """One sentence of an error that Lightning raised itself, "" for one that came from anywhere else.

    An error of ours that it covers, because its own cleaning up failed after that, is the one to read.

    Lightning checks its options (of the trainer, its callbacks and loggers) where it uses them, and raises whatever
    fits: ValueError, RuntimeError, AttributeError, ModuleNotFoundError or MisconfigurationException. Its messages name
    the option. An object of the command line that cannot be built, a logger whose package is missing, comes wrapped in
    errors of jsonargparse, whose cause is the last of a chain.
    """
    wrapped = _raised_in(error, _JSONARGPARSE)
    if not wrapped and not _raised_in(error, _LIGHTNING):
        return ""
    chain: list[BaseException] = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    ours = [each for each in chain if isinstance(each, InputError | TrainingError)]
    if ours:
        return sentence(ours[0]) or ""
    if wrapped:
        named = re.search("class_path '([^']+)'", str(error))
        return f"{named.group(1) if named else 'an object of the options'} cannot be built: {_flat(chain[-1])}"
    return f"Lightning refuses this run: {_flat(error)}"


@contextmanager
def ends_as_signalled() -> Iterator[None]:
    """Let a run that a signal ended say so: SystemExit with 143, as shells have SIGTERM, and KeyboardInterrupt.

    Lightning exits with 0 and 1. So a script would take a training that its scheduler cut off for a finished one, and
    an evaluation that a person cut off for one that missed its value.
    """
    try:
        yield
    except SIGTERMException:
        print(
            "error: the run was stopped by SIGTERM before its end: resume a fit with --ckpt_path and its last "
            "checkpoint, start anything else again",
            file=sys.stderr,
        )
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


def _raised_in(error: BaseException, package: Path) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[-1].name == "__getattr__":  # a module without what a callback asks for
        frames.pop()
    return bool(frames) and Path(frames[-1].filename).is_relative_to(package)


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
