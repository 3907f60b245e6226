"""Who may know whom: the imports of every file, also inside functions, held against one table; and the house rules."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.drawings.es import draw_es
from benchmarks.drawings.rooms import draw_rooms

ROOT = Path(__file__).parents[1]
TASKS = ("classification", "detection", "super_resolution")
# the modules of a task that tasks/reproduce may use
ENTRIES = ("evaluation", "cost", "module", "data", "datasets")
FRONT = ("lit", "cli", "__init__")
"""The top floor: nothing in the core may import these."""

# room of esbnn_core -> (rooms it imports beside itself, packages beside torch); from the ground floor up
CORE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("errors", "files", "version"), ("", "")),
    "kernels": ("errors files", "cuda"),  # cuda-bindings, which torch brings: esbnn_core/kernels/cuda/library.py
    "layers": ("errors", ""),
    "units": ("layers errors", ""),
    "models": ("units layers errors", ""),
    "packed": ("kernels units layers errors", ""),
    "training": ("kernels units layers errors", ""),
    "counting": ("packed layers errors", ""),
    "transforms": ("models packed units layers errors", ""),
    "checkpoint": ("transforms models packed units layers errors files version", "safetensors"),
    "lit": (
        "checkpoint transforms packed training units layers errors files",
        "lightning numpy PIL jsonargparse yaml",
    ),
    "onnx": ("transforms packed kernels models errors files version", "onnx onnx_ir onnxruntime onnxscript numpy"),
    "cli": ("onnx checkpoint transforms counting packed models kernels errors version", ""),
    "__init__": ("checkpoint counting transforms models training units errors version", ""),
}
# inside a task and inside tasks/reproduce: rooms from the ground floor up, each knows those before it alone
STACKS = {
    "tasks.detection": ("mmdet", "models"),
    "tasks.reproduce": ("tables", "modes", "report", "command"),
}
TOP_LEVEL = {
    *("esbnn_core", "tasks", "configs", "checkpoints", "tests", "setup.cfg", "environment.yml"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "requirements.in"),
    *("requirements.lock", "benchmarks", "docs", ".ci", ".gitignore", "results"),
}
LONGEST = 400
# keyword arguments that wave a mistake or a foreign pickle through; zip's own strict is another matter
FORBIDDEN_FALSE = ("strict", "weights_only")


def listed() -> list[str]:
    """Files of the repository by path: tracked, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git repository to list the files of: {error}")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def python_files(*folders: str) -> list[Path]:
    return sorted(p.relative_to(ROOT) for folder in folders for p in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path, source: str) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in it, relative ones and import_module("...") too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from esbnn_core import kernels` imports a room, `from esbnn_core import count` the front door
                yield f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "importorskip"):
                yield str(node.args[0].value)


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def core_fault(path: Path, name: str) -> str:
    """What is wrong with esbnn_core/... importing `name`, "" for nothing."""
    room = path.parts[1].removesuffix(".py")
    if room not in CORE:
        return f"room {room} has no line in the table CORE: add one"
    rooms, packages = CORE[room]
    top = name.split(".")[0]
    if top != "esbnn_core":
        allowed = ["torch", *packages.split()]
        return "" if top in allowed else f"{room} may import only {', '.join(allowed)} from outside"
    known = name.removeprefix("esbnn_core").lstrip(".").split(".")[0]
    if not known:
        return f"{room} must name the room it wants, not the front door esbnn_core"
    if known in (room, *rooms.split()):
        return ""
    return f"{room} may import only: {rooms or 'no other room'}"


def task_fault(path: Path, name: str) -> str:
    """What is wrong with tasks/... importing `name`."""
    if within(name, "tests") or within(name, "benchmarks"):
        return "tasks may import neither tests nor benchmarks"
    own = path.parts[1]
    if not within(name, "tasks"):
        return ""
    if within(name, f"tasks.{own}"):
        return stack_fault(path, name)
    if own == "evaluate":
        return "" if name.split(".")[1] in TASKS else "tasks.evaluate may import the three tasks and its own files only"
    if own == "reproduce":
        task, _, room = name.removeprefix("tasks.").partition(".")
        entry = within(name, "tasks.evaluate") or (task in TASKS and room.split(".")[0] in ENTRIES)
        return "" if entry else f"tasks.reproduce may import of a task only {', '.join(ENTRIES)}, and tasks.evaluate"
    return f"tasks.{own} may import esbnn_core and its own files only, never another task"


def stack_fault(path: Path, name: str) -> str:
    """What is wrong with a file of tasks/X importing `name` of the same tasks/X."""
    stack = STACKS.get(f"tasks.{path.parts[1]}", ())
    here, there = path.parts[2].removesuffix(".py"), name.split(".")[2] if name.count(".") > 1 else ""
    if here not in stack or there == here:
        return ""
    if there in stack and stack.index(there) < stack.index(here):
        return ""
    return f"{here} may import only {', '.join(stack[: stack.index(here)]) or 'its own files'} of its task"


def faults(path: Path, source: str) -> list[str]:
    """`file imports name: rule` for every import that breaks one."""
    judge = core_fault if path.parts[0] == "esbnn_core" else task_fault
    found = []
    for name in imports(path, source):
        if name.split(".")[0] in sys.stdlib_module_names:
            continue
        if fault := judge(path, name):
            found.append(f"{path} imports {name}: {fault}")
    return found


@pytest.mark.parametrize("folder", ["esbnn_core", "tasks"])
def test_imports_keep_to_the_table(folder: str) -> None:
    files = python_files(folder)
    assert len(files) > 5
    broken = [fault for path in files for fault in faults(path, (ROOT / path).read_text())]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "line", "allowed"),
    [
        ("esbnn_core/kernels/reference.py", "import torch.nn.functional", True),
        ("esbnn_core/kernels/reference.py", "from esbnn_core.kernels.checks import words_of", True),
        ("esbnn_core/kernels/reference.py", "from . import checks", True),
        ("esbnn_core/kernels/reference.py", "from esbnn_core.layers.widths import tile", False),
        ("esbnn_core/kernels/reference.py", "from ..layers.widths import tile", False),
        ("esbnn_core/layers/widths.py", "import numpy", False),
        ("esbnn_core/units/conv.py", "from esbnn_core import kernels", False),
        ("esbnn_core/packed/layers.py", "from esbnn_core import kernels", True),
        ("esbnn_core/units/conv.py", "def f():\n    from esbnn_core.models import create_model", False),
        ("esbnn_core/models/resnet.py", "from esbnn_core.transforms import pack_", False),
        ("esbnn_core/models/resnet.py", "from .registry import register_model", True),
        ("esbnn_core/counting/cost.py", "from esbnn_core.transforms.pack import pack_", False),
        ("esbnn_core/checkpoint/format.py", "from safetensors.torch import save", True),
        ("esbnn_core/models/registry.py", "import safetensors", False),
        ("esbnn_core/onnx/session.py", "import onnxruntime", True),
        ("esbnn_core/onnx/export.py", "from esbnn_core.checkpoint.network import load_checkpoint", False),
        ("esbnn_core/packed/layers.py", "import onnx", False),
        ("esbnn_core/cli.py", "from esbnn_core import create_model", False),
        ("esbnn_core/cli.py", "from esbnn_core.lit.cli import run", False),
        ("esbnn_core/lit/cli.py", "from lightning.pytorch.cli import LightningCLI", True),
        ("esbnn_core/lit/cli.py", "import torchvision", False),
        ("esbnn_core/lit/cli.py", "import importlib\nimportlib.import_module('tasks.classification')", False),
        ("esbnn_core/layers/quantizers.py", "import tasks.classification.data", False),
        ("esbnn_core/attic.py", "import torch", False),
        ("tasks/detection/module.py", "from tasks.detection.data import boxes", True),
        ("tasks/detection/models/roi.py", "from tasks.detection.mmdet import api", True),
        ("tasks/detection/mmdet/api.py", "from tasks.detection.models import roi", False),
        ("tasks/detection/models/roi.py", "from tasks.detection.module import DetectionModule", False),
        ("tasks/detection/module.py", "from tasks.classification.data import ClassificationDataModule", False),
        ("tasks/detection/module.py", "from ..classification import data", False),
        ("tasks/detection/module.py", "from tests.helpers.golden import fill", False),
        ("tasks/evaluate/command.py", "from tasks.classification.module import ClassificationModule", True),
        ("tasks/evaluate/command.py", "from tasks.reproduce.tables.table import Row", False),
        ("tasks/reproduce/command.py", "from tasks.reproduce.report import page", True),
        ("tasks/reproduce/tables/table.py", "from tasks.reproduce.modes.results import CellResult", False),
        ("tasks/reproduce/modes/ops.py", "from tasks.reproduce.report import page", False),
        ("tasks/reproduce/modes/ops.py", "from tasks.detection.cost import count_detector", True),
        ("tasks/reproduce/modes/ops.py", "from tasks.detection.models.anchors import Anchors", False),
        ("tasks/reproduce/modes/evaluation.py", "from tasks.evaluate import evaluate_name", True),
        ("tasks/reproduce/modes/evaluation.py", "import tasks.detection", False),
        ("tasks/detection/module.py", "from tasks.reproduce.tables.table import Row", False),
    ],
)
def test_the_table_can_be_broken(file: str, line: str, allowed: bool) -> None:
    found = faults(Path(file), line)
    assert (found == []) is allowed, found
    assert all(fault.startswith(f"{file} imports ") for fault in found)


def test_the_table_has_seven_floors_and_no_circles() -> None:
    floors: list[set[str]] = []
    waiting = {room: set(rooms.split()) for room, (rooms, _) in CORE.items()}
    while waiting:
        below = set().union(*floors)
        floors.append({room for room, needs in waiting.items() if needs <= below})
        assert floors[-1], f"rooms that wait for each other: {sorted(waiting)}"
        waiting = {room: needs for room, needs in waiting.items() if room not in floors[-1]}
    assert len(floors) == 7 and floors[-1] == set(FRONT)


def test_the_drawing_has_every_room_and_arrow_of_the_table() -> None:
    table = {room: set(rooms.split()) for room, (rooms, _) in CORE.items()}
    drawn = (ROOT / "docs" / "img" / "rooms.svg").read_text()
    assert drawn == draw_rooms(table), "docs/img/rooms.svg is not of this table: run python -m benchmarks.drawings"
    arrows = {f"{room} imports {needed}" for room, needs in table.items() for needed in needs}
    assert set(re.findall(r"<title>(.*?)</title>", drawn)) == arrows and len(arrows) > 40
    assert all(f">{room}</text>" in drawn for room in table)


def test_the_drawing_of_es_is_the_one_that_the_script_makes() -> None:
    drawn = (ROOT / "docs" / "img" / "es.svg").read_text()
    assert drawn == draw_es(), "docs/img/es.svg is an old one: run python -m benchmarks.drawings"


def test_every_right_that_is_granted_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in CORE}
    for path in python_files("esbnn_core"):
        room = path.parts[1].removesuffix(".py")
        for name in imports(path, (ROOT / path).read_text()):
            top, *rest = name.split(".")
            used[room].add(rest[0] if top == "esbnn_core" else top)
    unused = {room: set(f"{rooms} {packages}".split()) - used[room] for room, (rooms, packages) in CORE.items()}
    assert {room: rights for room, rights in unused.items() if rights} == {}


@pytest.mark.slow
def test_no_test_imports_another_test_or_a_conftest() -> None:
    files = python_files("tests")
    taken = {
        f"{path} imports {name}"
        for path in files
        for name in imports(path, (ROOT / path).read_text())
        if within(name, "tests") and not within(name, "tests.helpers")
    }
    assert len(files) > 100 and not taken, f"move what two files share into tests/helpers: {sorted(taken)}"


def test_every_room_begins_with_its_sentence() -> None:
    for path in python_files("esbnn_core", "tasks", "benchmarks"):
        if path.name == "__init__.py":
            first = (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").split("\n\n")[0]
            assert len(first) > 20 and first.endswith("."), f"{path} does not say what its room is for"


def test_the_top_level_holds_what_it_may() -> None:
    met = {Path(name).parts[0] for name in listed()}
    assert met - TOP_LEVEL == set()
    assert {"esbnn_core", "tasks", "configs", "tests", "setup.cfg", "environment.yml"} <= met


def test_no_file_is_longer_than_two_rooms() -> None:
    lengths = {p: len((ROOT / p).read_text().splitlines()) for p in python_files("esbnn_core", "tasks", "tests")}
    assert {str(p): n for p, n in lengths.items() if n > LONGEST} == {}


def waved_through(source: str) -> list[str]:
    """Forbidden `keyword=False` arguments with their line."""
    found: list[str] = []
    if not re.search(rf"({'|'.join(FORBIDDEN_FALSE)})\s*=\s*False", source):
        return found  # nearly every file, and parsing takes long
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") != "zip":
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg in FORBIDDEN_FALSE and isinstance(value, ast.Constant) and value.value is False:
                    found.append(f"{keyword.arg} is False in line {value.lineno}")
    return found


def test_loading_is_strict_and_pickles_are_not_trusted() -> None:
    files = [name for name in listed() if name.endswith(".py")]
    broken = {name: found for name in files if (found := waved_through((ROOT / name).read_text()))}
    assert len(files) > 20 and broken == {}


def test_what_is_waved_through_is_found() -> None:
    assert waved_through("model.load_state_dict(x, strict=False)") == ["strict is False in line 1"]
    assert waved_through("a = 1\ntorch.load(f, weights_only = False)") == ["weights_only is False in line 2"]
    assert waved_through("zip(a, b, strict=False)\ntorch.load(f, weights_only=True)\nf(strict=True)") == []
