"""Draws docs/img/es.svg and docs/img/rooms.svg anew: `python -m benchmarks.drawings`, from the repository's root."""

from benchmarks.command import run_command
from benchmarks.drawings.es import draw_es
from benchmarks.drawings.rooms import draw_rooms
from esbnn_core.files import ROOT, write_atomically
from tests.test_architecture import CORE


def main() -> None:
    """Write both files and print their names."""
    table = {room: set(rooms.split()) for room, (rooms, _) in CORE.items()}
    for name, text in (("es", draw_es()), ("rooms", draw_rooms(table))):
        path = ROOT / "docs" / "img" / f"{name}.svg"
        write_atomically(path, text.encode())
        print(path)


if __name__ == "__main__":
    run_command(main)
