"""What a module may refuse before a run writes its first file: the checks that the command line asks for."""

from typing import Protocol, runtime_checkable

import lightning as L


@runtime_checkable
class ChecksData(Protocol):
    """A module that has something to say about the data it is given."""

    def check_data(self, data: L.LightningDataModule | None) -> None:
        """Raise InputError where the data module does not fit; called for every subcommand, after both are built."""


@runtime_checkable
class ChecksFit(Protocol):
    """A module that cannot be trained from everything."""

    def check_fit(self, resumes: bool) -> None:
        """Raise InputError where there is nothing to train, or to train from.

        Args:
            resumes: whether the run goes on from a checkpoint, which brings the weights.
        """


@runtime_checkable
class ChecksEvaluation(Protocol):
    """A module that must have trained weights before it is judged."""

    def check_evaluation(self, run: str) -> None:
        """Raise InputError where there are none; not called where a checkpoint brings them.

        Args:
            run: the subcommand, for the message: validate, test or predict.
        """
