"""Where the embedded images of Set5 are, and files of one colour."""

from pathlib import Path

from PIL import Image

EMBEDDED = Path(__file__).parents[2] / "data" / "sr" / "Set5"


HR, LR = (48, 36), (24, 18)


def place(root: Path, *names: str, size: tuple[int, int] = HR) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (9, 90, 200)).save(root / name)


def low(root: Path, *names: str) -> None:
    place(root, *names, size=LR)
