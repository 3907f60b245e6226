"""The exceptions that a person is meant to read, and the checks that raise them most often."""

from collections.abc import Iterable


class InputError(ValueError):
    """A wrong input. The message is one sentence: the thing, the rule, the value given and how to fix it.

    The command lines print the sentence alone and exit with 2. Library users catch it as a ValueError.
    """


class DamagedError(InputError):
    """A file that is incomplete, or not what its writer wrote. Another copy of it may be intact."""


class TrainingError(RuntimeError):
    """Training cannot go on. The message is one sentence: the step, the first layer at fault and what to try."""


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
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_factors(tau: int, groups: int) -> None:
    """Raise InputError unless tau and groups are whole numbers of at least 1."""
    check_counts(tau=tau, groups=groups)


def check_counts(**counts: int) -> None:
    """Raise InputError that names the first of `counts` that is not a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
