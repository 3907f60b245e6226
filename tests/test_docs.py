"""The README and the pages run: python blocks as they stand, commands marked as tested, links that exist."""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.helpers import processes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAPERS = ROOT / "docs" / "reference" / "papers.md"
CITING = ("esbnn_core", "tasks", "benchmarks", "configs", "checkpoints", "tests", "docs")
SUFFIXES = {".py", ".yaml", ".md", ".h", ".cpp", ".cu", ".cuh"}
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
    assert len(readme) >= 1 and all("print(" in code for code in readme)
    assert len(CODE) - len(readme) >= 6 and sum(map(len, COMMANDS.values())) >= 6


@pytest.mark.parametrize("name", CODE)
def test_code_runs_and_prints_what_its_comments_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block prints something, so that it shows what it claims."""
    monkeypatch.chdir(tmp_path)
    code = CODE[name]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs", "exec"), {"__name__": "docs"})
    promised = re.findall(r"print\(.*\)\s+# ([^,\n]+)", code)
    assert promised
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
        placeholder = any(part.isupper() for part in Path(name).with_suffix("").parts)
        assert placeholder or (ROOT / name).is_file(), f"{page.name} names {name}"


def missing(text: str) -> list[str]:
    """Files of the repository and modules that a page names and that do not exist."""
    paths = re.findall(r"(?<![\w/.-])((?:esbnn_core|tasks|benchmarks|tests)/[\w/]+\.(?:py|md|cpp))", text)
    modules = [name.replace(".", "/") for name in re.findall(r"python -m ((?:tasks|benchmarks)[\w.]*\w)", text)]
    lost = [name for name in paths if not (ROOT / name).is_file() and not re.search(r"[A-Z]{3}", name)]
    return lost + [name for name in modules if not (ROOT / name).is_dir() and not (ROOT / f"{name}.py").is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    assert missing(page.read_text()) == []


def test_a_file_or_module_that_is_gone_is_found() -> None:
    text = (
        "`esbnn_core/units/conv.py`, `tests/core/test_gone.py`, python -m tasks.evaluate, `python -m benchmarks.gone`."
    )
    assert missing(text) == ["tests/core/test_gone.py", "benchmarks/gone"]


def anchors(text: str) -> set[str]:
    """What a link can point to in a page: explicit ids, and headings as GitHub and the site spell them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"></a>', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_a_place_in_a_page_lead_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            there = page.parent / target if target else page
            assert anchor in anchors(there.read_text()), f"{page.name} links to {target}#{anchor}"


def citations(text: str) -> set[str]:
    """Anchors of the papers page that a file cites; several follow each other with commas, also over a line's end."""
    found = re.findall(r"papers\.md(#[\w-]+(?:,\s*(?:#\s+)?#[\w-]+)*)", text)
    return {anchor for group in found for anchor in re.findall(r"#([\w-]+)", group)}


def citation_faults(text: str, known: set[str]) -> list[str]:
    """Citations that lead nowhere, and sections of the notes that the papers page replaces."""
    lost = [f"papers.md#{anchor}" for anchor in sorted(citations(text) - known)]
    return lost + re.findall(r"\bspec \d+\.\d+", text)


def test_every_citation_has_its_anchor_in_the_papers_page() -> None:
    text = PAPERS.read_text()
    known = re.findall(r'<a id="([^"]+)"></a>', text)
    assert len(known) == len(set(known))
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    files += [path for name in CITING for path in (ROOT / name).rglob("*") if path.suffix in SUFFIXES]
    cited = [path for path in files if citations(path.read_text())]
    assert len(cited) > 50 and {path.suffix for path in cited} >= {".py", ".yaml"}
    faults = {
        str(path.relative_to(ROOT)): found for path in files if (found := citation_faults(path.read_text(), set(known)))
    }
    assert faults == {}


CITE = "papers.md" + "#"  # in two parts, so that the wrong citations below are not ones of this file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"as in {CITE}es, #tile-order.", []),
        (f"Source: {CITE}es,\n    #tile-ordre.", [CITE + "tile-ordre"]),
        (f"# ReCU ({CITE}es,\n#   #rekuh).", [CITE + "rekuh"]),
        (f"[there](../reference/{CITE}Es)", [CITE + "Es"]),
        ("see spec" + " 4.2 for the forward", ["spec" + " 4.2"]),
        ("a spec of 4.2 lines", []),
    ],
)
def test_a_citation_without_an_anchor_is_found(text: str, expected: list[str]) -> None:
    assert citation_faults(text, {"es", "tile-order"}) == expected


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The pages that the site makes from other files; `make docs` builds the site itself."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "configs" / "docs" / "pages.py")
    assert spec is not None and spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    return pages


def test_the_site_has_every_page_and_every_room(site: ModuleType) -> None:
    config = yaml.safe_load((ROOT / "configs" / "docs" / "mkdocs.yml").read_text())
    named = {page for part in config["nav"][1:-1] for pages in part.values() for page in pages if isinstance(page, str)}
    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert named == {page for page in written if not page.startswith("img/")}
    assert set(site.rooms()) == {
        path.stem for path in (ROOT / "esbnn_core").iterdir() if path.stem[:2] not in ("__", "py")
    }
    for room in site.rooms():
        page = site.room_page(room)
        assert f"::: esbnn_core.{room}\n" in page and page.count(":::") == len(site.modules(room))
    assert "[`pack_`][esbnn_core.transforms.pack.pack_]" in site.front_door()


def test_links_of_the_readme_and_citations_lead_on_within_the_site(site: ModuleType) -> None:
    text = (
        "[a](docs/guides/deploy.md) [b](tests/data/sr) [c](https://x.org/y) ![d](docs/img/es.svg) [e](CONTRIBUTING.md)"
    )
    made = (
        "[a](guides/deploy.md) b (`tests/data/sr`) [c](https://x.org/y) ![d](img/es.svg) [e](reference/contributing.md)"
    )
    assert site.to_page(text, "index.md") == made
    assert site.to_page("[a](docs/guides/deploy.md)", "reference/contributing.md") == "[a](../guides/deploy.md)"
    linked = site.link_citations(f"({CITE}es, #recu)")
    assert re.findall(r'href="([^"]+)"', linked) == ["../reference/papers.html#es", "../reference/papers.html#recu"]
