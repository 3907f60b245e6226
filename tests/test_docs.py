"""The README and the pages run: python blocks as they stand, commands marked as tested, links that exist."""

import contextlib
import io
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.helpers import processes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = {
    f"{page.stem}-{place}": code
    for page in PAGES
    for place, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
}
COMMANDS = {
    page.stem: [
        line
        for block in re.findall(r"```bash tested\n(.*?)```", page.read_text(), re.S)
        for line in block.splitlines()
        if line
    ]
    for page in PAGES
}


def test_there_is_something_to_run() -> None:
    readme = [code for name, code in CODE.items() if name.startswith("README")]
    assert len(readme) >= 3 and sum("print(" in code for code in readme) >= 1
    assert len(CODE) - len(readme) >= 3 and sum(map(len, COMMANDS.values())) >= 6


@pytest.mark.parametrize("name", CODE)
def test_code_runs_and_prints_what_its_comments_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of a page prints something; the README also has blocks that show a call alone."""
    monkeypatch.chdir(tmp_path)
    code = CODE[name]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs", "exec"), {"__name__": "docs"})
    promised = re.findall(r"print\(.*\)\s+# ([^,\n]+)", code)
    assert promised or name.startswith("README")
    assert printed.getvalue().splitlines() == [text.strip() for text in promised]


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, lines in COMMANDS.items() if lines])
def test_commands_that_are_marked_end_with_code_0(page: str, tmp_path: Path) -> None:
    """As a user types them, one after another, in a folder that holds what a clone holds."""
    for name in ("configs", "checkpoints", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for line in COMMANDS[page]:
        words = shlex.split(line)
        start = {"python": [], "esbnn": ["-m", "esbnn_core.cli"]}[words[0]]
        done = processes.run([sys.executable, *start, *words[1:]], tmp_path, {**os.environ, "PYTHONPATH": path})
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configs_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"(?<![\w/.-])configs/[\w/]+\.(?:yaml|py)", page.read_text()):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"
