"""Where the files of a recipe lie: configs name each other below the repository, whatever folder a command runs in."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def below_repository(path: str | Path) -> Path:
    """The path as it stands; the one below the repository where only that is a file."""
    found = Path(path)
    within = ROOT / found
    return within if not found.exists() and within.is_file() else found
