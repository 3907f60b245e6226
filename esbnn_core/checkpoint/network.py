"""From a file, or the name of a released one, to a network, and from a latent file to a packed one."""

import copy
import os
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esbnn_core.checkpoint.catalogue import CATALOGUE, Catalogue, Entry, is_path, read_catalogue
from esbnn_core.checkpoint.fetch import check_file, checkpoint_cache, drop_if_damaged, fetch
from esbnn_core.checkpoint.format import (
    Checkpoint,
    check_state,
    check_values,
    load_state,
    read_checkpoint,
    save_checkpoint,
    saved_options,
)
from esbnn_core.checkpoint.official import load_official
from esbnn_core.errors import InputError
from esbnn_core.models import create_model as build_model
from esbnn_core.models import model_spec
from esbnn_core.packed.layers import HALF
from esbnn_core.transforms.fold_real import fold_real_
from esbnn_core.transforms.pack import pack_, pack_layout_
from esbnn_core.transforms.real_weights import real_weights_
from esbnn_core.units.start import Start


def create_model(name: str, pretrained: bool | str = False, *, start: Start | None = None, **options: Any) -> nn.Module:
    """Build a network by name, or load a released one with its weights.

    A pretrained network is what its file holds: a file of this project is packed and gives a packed network, for
    inference alone; one of an original repository gives a latent network, which can be trained and packed. It is in
    evaluation mode, and options that are not given are those of the file, not the defaults.

    Args:
        name: of the network, as `esbnn models` lists them.
        pretrained: False for new weights; True for the network's released file; or the name of one in the catalogue,
            which is always looked up there, even if a file of that name exists.
        start: where the thresholds and gains of a new network start (esbnn_core.start_apart_); None for the papers'.
        **options: of the network's builder, e.g. num_classes, in_channels, tau, groups. With `pretrained` they must
            be those of the file.

    Returns:
        an nn.Module on the current default device that maps (N, in_channels, H, W) to logits (N, num_classes), a trunk
        to feature maps, and remembers its ModelSpec (see model_spec); a new network is in training mode.

    Raises:
        InputError: an unknown name or option; a width that tau*groups does not divide; with `pretrained` no released
            file or several, a start, one of another network or with other options, or one that cannot be fetched or
            read.
    """
    if pretrained is False:
        return build_model(name, start, **options)
    if start is not None:
        raise InputError(
            f"start must be None with pretrained={pretrained!r}, got {start}: a trained network has its thresholds"
        )
    with torch.device("meta"):
        build_model(name, **options)  # refuses unknown names and options before anything is fetched
        entry = _choose_entry(name, pretrained)
        spec = model_spec(build_model(name, **entry.options))
    assert spec is not None
    held = {option: spec.options[option] for option in options if spec.options[option] != options[option]}
    if held:
        wanted = ", ".join(f"{option}={value!r}" for option, value in held.items())
        given = ", ".join(f"{option}={options[option]!r}" for option in held)
        raise InputError(
            f"options of {name} must be {wanted} with the released file {entry.name}, got {given}: leave them out, or "
            f"build the network without pretrained"
        )
    return _load_entry(entry, None, None, torch.empty(0).device)


def load_checkpoint(
    source: str | Path,
    model: nn.Module | None = None,
    *,
    sha256: str | None = None,
    device: str | torch.device = "cpu",
    fold_real: bool = False,
) -> nn.Module:
    """The network of a checkpoint, in evaluation mode.

    Args:
        source: a file that save_checkpoint wrote, or a name of the catalogue (`python -m tasks.evaluate --list`),
            whose file is fetched if need be; that may be one of an original repository. A file that exists is taken
            before a name.
        model: a latent network to load into, see build_network.
        sha256: of the file, compared before anything is parsed.
        device: where the network goes.
        fold_real: also call fold_real_ on the packed network, which is then faster and rounds its real layers
            differently; the file stays as it is.

    Returns:
        the network, packed if the file is; those of this project in the catalogue are.

    Raises:
        InputError: what read_checkpoint, build_network, fetch and load_official refuse; a name that the catalogue does
            not have, or whose network needs `model`; with fold_real what fold_real_ refuses.
    """
    if is_path(source):
        network = build_network(read_checkpoint(source, sha256=sha256), model, device=device)
    else:
        network = _load_entry(_read_catalogue(str(source)).find(str(source)), model, sha256, device)
    return fold_real_(network) if fold_real else network


def build_network(
    checkpoint: Checkpoint, model: nn.Module | None = None, *, device: str | torch.device = "cpu"
) -> nn.Module:
    """The network of a checkpoint that was read, in evaluation mode, all tensors or none.

    Args:
        checkpoint: from read_checkpoint.
        model: a latent network to load into, packed in place for a packed file; default: built by the name and options
            in the file, with real weights if the file's are. A given network keeps its own kind of weights: a binary
            one takes over a file with real weights, as step 2 does after step 1. It keeps its dtype too, which must
            hold every value of the file's: float64 weights need a network in float64.
        device: where the network goes.

    Raises:
        InputError: a file without a network name and no `model`, options that cannot be built or are not those that
            the given network says of itself, or what load_state refuses; a given network is then as it was.
    """
    if model is None:
        # shapes are compared without memory first: the options of a damaged or hostile file may ask for any amount
        with torch.device("meta"):
            check_state(_build(checkpoint), checkpoint.tensors, str(checkpoint.path))
        model = _build(checkpoint)
        load_state(model, checkpoint.tensors, str(checkpoint.path))
        return model.to(device).eval()
    check_values(model)
    wanted = saved_options(model)
    if wanted is not None and model_spec(model) is None and wanted != checkpoint.options:
        raise InputError(
            f"checkpoint {checkpoint.path} must be of a network with the options {wanted or 'of its paper'}, got "
            f"{checkpoint.options or 'those of its paper'}: build the network with the options of the file"
        )
    if checkpoint.kind == "packed":
        # checked on a copy without data: a file that does not fit must not leave the caller's network packed
        layout = pack_layout_(copy.deepcopy(model).to("meta"))
        check_state(layout, checkpoint.tensors, str(checkpoint.path))
        model = pack_layout_(model)
    load_state(model, checkpoint.tensors, str(checkpoint.path))
    return model.to(device).eval()


def pack_checkpoint(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Pack a latent file into a packed one; returns the bytes of both files.

    Raises:
        InputError: what load_checkpoint and pack_ refuse, or a file that is packed already or is its own target;
            nothing is written then.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise InputError(f"checkpoint {source} was given as both files: name another one to write")
    checkpoint = read_checkpoint(source)
    if checkpoint.kind == "packed":
        raise InputError(f"checkpoint {source} is packed already: give the latent file")
    model = build_network(checkpoint)
    save_checkpoint(pack_(model), target, metric=checkpoint.metric, commit=checkpoint.metadata["commit"])
    return Path(source).stat().st_size, Path(target).stat().st_size


def _read_catalogue(name: str) -> Catalogue:
    if not CATALOGUE.is_file():  # of an installed package
        raise InputError(
            f"{name!r} is not a file, and the catalogue {CATALOGUE} to look it up in does not exist: give the path of "
            f"a file, or run in a checkout of the repository"
        )
    return read_catalogue()


def _choose_entry(network: str, pretrained: object) -> Entry:
    """The catalogue's entry for a network: the one that is named, or the only one but for its other seeds."""
    if isinstance(pretrained, str):
        entry = _read_catalogue(pretrained).find(pretrained)
        if entry.network != network:
            held = entry.network or "a network that this project does not have"
            raise InputError(
                f"pretrained must be a released file of {network}, got {pretrained!r} of {held}: name another file or "
                f"network"
            )
        return entry
    if pretrained is not True:
        raise InputError(f"pretrained must be True, False or a name of the catalogue, got {pretrained!r}: give one")
    catalogue = _read_catalogue(network)
    entries = [entry for entry in catalogue if entry.task == "classification" and entry.readable]
    found = [entry for entry in entries if entry.network == network]
    names = {entry.name for entry in found}
    found = [entry for entry in found if entry.release == entry.name or entry.release not in names]
    if len(found) > 1:
        raise InputError(
            f"pretrained must name one of the released files of {network}, {', '.join(entry.name for entry in found)}, "
            f"got True: choose one"
        )
    if not found:
        others = sorted({entry.network for entry in entries})
        raise InputError(
            f"network {network} has no released file that can be read: train it, or use one that has, "
            f"{', '.join(others)}"
        )
    return found[0]


def _load_entry(entry: Entry, model: nn.Module | None, sha256: str | None, device: str | torch.device) -> nn.Module:
    """The network of a released file, fetched if need be; see load_checkpoint."""
    if not entry.readable:
        raise InputError(f"checkpoint {entry.name} cannot be read by this project: {entry.note}")
    if model is None and entry.task != "classification":
        raise InputError(
            f"checkpoint {entry.name} is of a network of {entry.task}, which its recipe {entry.config} builds: pass "
            f"that network as model, or run python -m tasks.evaluate {entry.name}"
        )
    path = fetch(entry, checkpoint_cache())
    with drop_if_damaged(path):
        if entry.ours:
            return build_network(read_checkpoint(path, sha256=sha256), model, device=device)
        if sha256 is not None:
            check_file(path, sha256.lower(), None, "fetch it again")
        if model is None:
            model = build_model(entry.network, **entry.options)
        load_official(model, path)
    return model.to(device).eval()


def _build(checkpoint: Checkpoint) -> nn.Module:
    """The network that the file names, packed for a packed file, in the file's dtypes."""
    if not checkpoint.network:
        raise InputError(
            f"checkpoint {checkpoint.path} names no network, it was saved from one that create_model did not build: "
            f"build it and pass it as model"
        )
    try:
        model = build_model(checkpoint.network, **checkpoint.options)
        if checkpoint.weights == "real":
            real_weights_(model)
    except Exception as error:  # the options are whatever the file says
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise InputError(f"checkpoint {checkpoint.path} asks for what cannot be built: {reason}") from error
    kinds = {t.dtype for t in checkpoint.tensors.values() if t.is_floating_point()}
    model = model.to(next(iter(kinds))) if len(kinds) == 1 else model
    if checkpoint.kind == "packed":
        model = pack_layout_(model)
        narrow = kinds & set(HALF)
        if len(narrow) == 1 and kinds - narrow == {torch.float32}:  # .bfloat16() leaves affines as they are
            model = model.to(narrow.pop())
    return model
