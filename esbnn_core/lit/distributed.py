"""Lists that the processes of a distributed run share."""

from typing import Any, TypeVar

import torch

T = TypeVar("T")


def from_all_processes(own: list[T]) -> list[T]:
    """Concatenate the lists of all processes, in their order; every process gets the same result."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return [one for part in parts for one in part]
