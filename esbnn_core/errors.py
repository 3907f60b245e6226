"""The exceptions that a person is meant to read, and the checks that most often raise them."""

from collections.abc import Iterable


class InputError(ValueError):
    """What was met, where, what was expected and how to fix it, in one sentence.

    The command lines print the sentence alone and exit with 2; library users catch it as the ValueError it is.
    """


class DamagedError(InputError):
    """A file that is not whole, or not what its writer wrote: another copy of it may be."""


class TrainingError(RuntimeError):
    """Training cannot go on: the step, the first layer at fault and what to try, in one sentence."""


def check_choice(name: str, value: object, known: Iterable[object]) -> None:
    """Raise InputError unless `value` is one of `known`; `name` says what is chosen, for the error alone."""
    choices = list(known)
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_factors(tau: int, groups: int) -> None:
    """Raise InputError unless tau and groups are whole numbers of at least 1."""
    check_counts(tau=tau, groups=groups)


def check_counts(**counts: int) -> None:
    """Raise InputError that names the first of `counts` which is not a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
