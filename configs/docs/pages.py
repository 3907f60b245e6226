"""Pages of the site that are made from other files: README, CONTRIBUTING, one API page for each room of the core."""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def to_page(text: str, page: str) -> str:
    """A file of the repository's root as the site's `page`: links into docs/ stay, others become names."""

    def link(match: re.Match[str]) -> str:
        text, target = match["text"], match["target"]
        if "://" in target:
            return match[0]
        up = "../" * page.count("/")
        if target.startswith("docs/"):
            return f"[{text}]({up}{target.removeprefix('docs/')})"
        return f"[{text}]({up}reference/contributing.md)" if target == "CONTRIBUTING.md" else f"{text} (`{target}`)"

    return re.sub(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", link, text)


def rooms() -> list[str]:
    """Modules and packages of esbnn_core that have an API page, in the order of their names."""
    paths = sorted((ROOT / "esbnn_core").iterdir())
    return [p.stem for p in paths if (p.suffix == ".py" and p.stem != "__init__") or (p / "__init__.py").exists()]


def modules(room: str) -> list[Path]:
    """Files of a room, the room's own first, private ones left out."""
    folder = ROOT / "esbnn_core" / room
    if not folder.is_dir():
        return [folder.with_suffix(".py")]
    files = [path for path in sorted(folder.rglob("*.py")) if not path.name.startswith("_") or path.stem == "__init__"]
    return sorted(files, key=lambda path: (path.parent, path.stem != "__init__"))


def defined(path: Path) -> list[str]:
    """Public functions and classes that a file defines, without those that it only passes on."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in ast.parse(path.read_text()).body if isinstance(n, kinds) and not n.name.startswith("_")]


def room_page(room: str) -> str:
    """One API page: the room's own docstring and definitions, then a section for each of its modules."""
    parts = [f"# esbnn_core.{room}"]
    for place, path in enumerate(modules(room)):
        package = path.stem == "__init__"
        name = ".".join((path.parent if package else path.with_suffix("")).relative_to(ROOT).parts)
        if place:
            parts.append(f"## {name.removeprefix('esbnn_core.')}")
        lines = [f"::: {name}", "    options:", f"      heading_level: {3 if place else 2}"]
        parts.append("\n".join(lines + [f"      members: {json.dumps(defined(path))}"] * package))
    return "\n\n".join(parts) + "\n"


def first_sentence(thing: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.) (?=[A-Z(])", text)[0].strip()


def front_door() -> str:
    """The page of the names that a user types: each with its first sentence and a link to its own page."""
    package = importlib.import_module("esbnn_core")
    lines = ["# API", "", inspect.getdoc(package) or "", "", "| `from esbnn_core import` | |", "| --- | --- |"]
    for name in sorted(package.__all__, key=str.lower):
        thing = getattr(package, name)
        where = f"{getattr(thing, '__module__', '')}.{name}"
        if callable(thing):
            lines.append(f"| [`{name}`][{where}] | {first_sentence(thing)} |")
        else:
            lines.append(f"| `{name}` | {thing} |")
    lines += ["", "## Rooms", "", "| module | what it is for |", "| --- | --- |"]
    for room in rooms():
        sentence = first_sentence(importlib.import_module(f"esbnn_core.{room}")) if room != "lit" else ""
        lines.append(f"| [`esbnn_core.{room}`]({room}.md) | {sentence} |")
    return "\n".join(lines) + "\n"


def link_citations(html: str) -> str:
    """An API page whose citations of the papers page are links to it."""

    def links(match: re.Match[str]) -> str:
        return re.sub(r"#([\w-]+)", r'<a href="../reference/papers.html#\1">#\1</a>', match[0])

    return re.sub(r"papers\.md#[\w-]+(?:,\s+#[\w-]+)*", links, html)


def on_config(config: Any) -> Any:
    """The API part of the navigation, and no script from elsewhere: docs/file-worker.js does its work."""
    config["extra"]["polyfills"] = []
    pages = [{"Names": "api/index.md"}, *({room: f"api/{room}.md"} for room in rooms())]
    config["nav"][-1]["API"] = pages
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that have no file of their own in docs/."""
    from mkdocs.structure.files import File

    made = {
        "index.md": "---\nhide: [navigation]\n---\n\n" + to_page((ROOT / "README.md").read_text(), "index.md"),
        "reference/contributing.md": to_page((ROOT / "CONTRIBUTING.md").read_text(), "reference/contributing.md"),
        "api/index.md": front_door(),
    }
    for room in rooms():
        made[f"api/{room}.md"] = room_page(room)
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Citations of the papers page in docstrings become links."""
    return link_citations(html) if page.file.src_uri.startswith("api/") else html


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The worker for files, before every other script; a script or style from elsewhere ends the build."""
    if found := re.search(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"?https?://[^>]*>", output):
        raise ValueError(f"page {page.file.src_uri} must be readable offline, got {found[0]}: leave it out")
    up = "../" * page.file.dest_uri.count("/")
    return output.replace("</head>", f'<script src="{up}file-worker.js"></script></head>', 1)
