"""From a checkpoint file to a network, and from a latent file to a packed one."""

import copy
from pathlib import Path

import torch
from torch import nn

from esbnn_core.checkpoint.format import Checkpoint, check_state, load_state, read_checkpoint, save_checkpoint
from esbnn_core.errors import InputError
from esbnn_core.models import create_model
from esbnn_core.transforms.pack import pack_, pack_layout_
from esbnn_core.transforms.real_weights import real_weights_


def load_checkpoint(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    sha256: str | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """The network of a checkpoint file, in evaluation mode.

    Args:
        path: written by save_checkpoint.
        model: a latent network to load into, see build_network.
        sha256: of the file, compared before anything is parsed.
        device: where the network goes.

    Returns:
        the network, packed if the file is.

    Raises:
        InputError: what read_checkpoint and build_network refuse.
    """
    return build_network(read_checkpoint(path, sha256=sha256), model, device=device)


def build_network(
    checkpoint: Checkpoint, model: nn.Module | None = None, *, device: str | torch.device = "cpu"
) -> nn.Module:
    """The network of a checkpoint that was read, in evaluation mode, all tensors or none.

    Args:
        checkpoint: from read_checkpoint.
        model: a latent network to load into, packed in place for a packed file; default: built by the name and options
            in the file, with real weights if the file's are. A given network keeps its own kind of weights: a binary
            one takes over a file with real weights, as step 2 does after step 1.
        device: where the network goes.

    Raises:
        InputError: a file without a network name and no `model`, options that cannot be built, or what load_state
            refuses; a given network is then as it was.
    """
    if model is None:
        model = _build(checkpoint)
    if checkpoint.kind == "packed":
        # checked on a copy without data: a file that does not fit must not leave the caller's network packed
        layout = pack_layout_(copy.deepcopy(model).to("meta"))
        check_state(layout, checkpoint.tensors, str(checkpoint.path))
        model = pack_layout_(model)
    load_state(model, checkpoint.tensors, str(checkpoint.path))
    return model.to(device).eval()


def _build(checkpoint: Checkpoint) -> nn.Module:
    if not checkpoint.network:
        raise InputError(
            f"checkpoint {checkpoint.path} names no network, it was saved from one that create_model did not build: "
            f"build it and pass it as model"
        )
    try:
        model = create_model(checkpoint.network, **checkpoint.options)
        if checkpoint.weights == "real":
            real_weights_(model)
    except (InputError, TypeError, RuntimeError) as error:  # the options are whatever the file says
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint {checkpoint.path} asks for what cannot be built: {reason}") from error
    kinds = {t.dtype for t in checkpoint.tensors.values() if t.is_floating_point()}
    return model.to(kinds.pop()) if len(kinds) == 1 else model


def pack_checkpoint(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Pack a latent file into a packed one; returns the bytes of both files.

    Raises:
        InputError: what load_checkpoint and pack_ refuse, or a file that is packed already or its own
            target; nothing is written then.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise InputError(f"checkpoint {source} was given as both files: name another one to write")
    checkpoint = read_checkpoint(source)
    if checkpoint.kind == "packed":
        raise InputError(f"checkpoint {source} is packed already: give the latent file")
    model = _build(checkpoint)
    load_state(model, checkpoint.tensors, str(source))
    save_checkpoint(pack_(model.eval()), target, metric=checkpoint.metric, commit=checkpoint.metadata["commit"])
    return Path(source).stat().st_size, Path(target).stat().st_size
