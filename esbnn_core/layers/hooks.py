"""What any module of a network may offer to training and packing: hooks, found by the name of their method."""

from typing import Protocol, TypeGuard

from torch import nn


class HasTrainingParts(Protocol):
    """A module some of whose parts are for training alone."""

    def drop_training_parts_(self) -> object:
        """Remove these parts, in place; a second call changes nothing."""


class HasBoundedParameters(Protocol):
    """A module with parameters that an optimizer step may take out of their range."""

    def project_(self) -> object:
        """Put the parameters back into their range, in place; called without gradient."""


# isinstance with a runtime_checkable Protocol takes fifty times as long, for every module at every optimizer step


def has_training_parts(module: nn.Module) -> TypeGuard[HasTrainingParts]:
    """Whether the module offers the hook drop_training_parts_."""
    return hasattr(module, "drop_training_parts_")


def has_bounded_parameters(module: nn.Module) -> TypeGuard[HasBoundedParameters]:
    """Whether the module offers the hook project_."""
    return hasattr(module, "project_")


def drop_training_parts_(model: nn.Module) -> nn.Module:
    """Let every module that has parts for training alone remove them; returns the model."""
    for module in list(model.modules()):
        if has_training_parts(module):
            module.drop_training_parts_()
    return model
