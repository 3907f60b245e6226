"""From a file to a network and back: our format, the originals' files, the catalogue of released files."""

from esbnn_core.checkpoint.format import Checkpoint, check_state, load_state, read_checkpoint, save_checkpoint
from esbnn_core.checkpoint.network import build_network, create_model, load_checkpoint, pack_checkpoint
from esbnn_core.checkpoint.official import OfficialReport, load_official, to_official

__all__ = [
    "Checkpoint",
    "OfficialReport",
    "build_network",
    "check_state",
    "create_model",
    "load_checkpoint",
    "load_official",
    "load_state",
    "pack_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "to_official",
]
