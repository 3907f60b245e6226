"""What a person reads of an exception: our sentence alone, or what Lightning says of an option that it refuses."""

import re
import traceback
from pathlib import Path

import jsonargparse
import lightning as L

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


def _raised_in(error: BaseException, package: Path) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[-1].name == "__getattr__":  # a module without what a callback asks for
        frames.pop()
    return bool(frames) and Path(frames[-1].filename).is_relative_to(package)


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
