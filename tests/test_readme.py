"""The README's commands name what exists (test_docs.py runs its code)."""

import re
from pathlib import Path

import pytest
import yaml

from esbnn_core import list_models
from esbnn_core.checkpoint.catalogue import read_catalogue
from esbnn_core.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line]


def test_commands_name_files_and_targets_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for command in COMMANDS:
        words = command.split("#")[0].split()
        if words[0] == "make":
            assert words[1] in targets, command
        for word in words:
            if word.startswith("configs/"):
                assert yaml.safe_load((ROOT / word).read_text()), command
        # tests/core/test_console.py runs count --all
        if words[0] == "esbnn" and words[1] in ("models", "count") and "--all" not in words:
            assert main(words[1:]) == 0 and capsys.readouterr().out, command


def test_networks_that_are_named_exist() -> None:
    page = (ROOT / "docs" / "reference" / "networks.md").read_text()
    for text in (TEXT, page):
        named = set(re.findall(r"`(\w+resnet\d+)", text)) | set(
            re.findall(r"^\| (\w*(?:resnet|bnext)\w*) \|", text, re.M)
        )
        released = {entry.name for entry in read_catalogue().entries}
        assert named and named <= set(list_models()) | released
