"""The precision of a run and the dtypes of its files: every value that training left goes into a file and out again.

Files hold float32 for what was trained in half precision: it has every value, the sums of binary layers are exact in
it, and packed and latent files agree bit for bit. What was trained in float64 stays float64.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from esbnn_core.checkpoint.catalogue import is_path
from esbnn_core.checkpoint.format import read_checkpoint
from esbnn_core.checkpoint.network import build_network, load_checkpoint
from esbnn_core.packed.layers import HALF


def as_exported(network: nn.Module) -> nn.Module:
    """The network as files hold it: itself, or a copy in float32 of one that has tensors in half precision."""
    return copy.deepcopy(network).float() if any(_has(network.state_dict(), kind) for kind in HALF) else network


def load_weights(path: str, network: nn.Module) -> nn.Module:
    """As load_checkpoint into a given network, which becomes float64 first for a file in float64.

    A run in another precision then rounds it, with a warning (`set_precision_`).
    """
    if not is_path(path):
        return load_checkpoint(path, network)
    checkpoint = read_checkpoint(Path(path))
    return build_network(checkpoint, widen_(network, checkpoint.tensors))


def widen_(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make the network float64 if the tensors that it is about to load are; returns it."""
    return network.double() if is_wide(tensors) else network


def set_precision_(network: nn.Module, precision: str) -> None:
    """Make the network float64 for a run in 64-true, and float32 for every other one, with a warning if that rounds.

    The trainer does the rest. It would make the network float64 after it has read a checkpoint, rounded to float32.

    Args:
        network: before the trainer reads a checkpoint.
        precision: of the trainer.
    """
    if precision == "64-true":
        network.double()
    elif is_wide(network.state_dict()):
        network.float()
        warn_of_rounding(precision)


def warn_of_rounding(precision: str) -> None:
    """Report that weights in float64 lose digits in this run."""
    rank_zero_warn(
        f"weights in float64 are rounded, because trainer.precision is {precision}: set it to 64-true to keep them"
    )


def is_wide(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is float64."""
    return _has(tensors, torch.float64)


def _has(tensors: Mapping[str, Tensor], kind: torch.dtype) -> bool:
    return any(tensor.dtype == kind for tensor in tensors.values())
