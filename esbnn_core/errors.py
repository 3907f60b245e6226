"""The exceptions that a person is meant to read."""


class InputError(ValueError):
    """What was met, where, what was expected and how to fix it, in one sentence.

    The command lines print the sentence alone and exit with 2; library users catch it as the ValueError it is.
    """


class DamagedError(InputError):
    """A file that is not whole, or not what its writer wrote: another copy of it may be."""


class TrainingError(RuntimeError):
    """Training cannot go on: the step, the first layer at fault and what to try, in one sentence."""
