"""The stack that the project installs: two versions of lightning that carried a credential stealer stay out."""

import configparser
import importlib.metadata
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
BANNED = ("2.6.2", "2.6.3")
# files whose every line is a requirement: there the bare name is an open door too
REQUIREMENTS = re.compile(
    r"(^|/)(requirements[^/]*|setup\.cfg|environment[^/]*\.ya?ml|pyproject\.toml|constraints[^/]*)$"
)
SPECIFIED = re.compile(
    r"(?<![\w.-])(?:pytorch[-_])?lightning(?:\[[^\]]*\])?\s*\(?"
    r"((?:===|==|~=|!=|<=|>=|<|>|=)\s*\d[\w.*+!-]*(?:\s*,\s*(?:===|==|~=|!=|<=|>=|<|>|=)\s*\d[\w.*+!-]*)*)",
    re.IGNORECASE,
)
BARE = re.compile(r"^[\s\"'-]*(?:pytorch[-_])?lightning(?:\[[^\]]*\])?[\"',\s]*(?:[;#].*)?$", re.IGNORECASE)
INSTALLED = re.compile(r"(?:pip|uv|conda|mamba)\b.*\binstall\b.*[\s\"'](?:pytorch[-_])?lightning[\"']?(?=\s|$)", re.I)


def admitted(specifier: str) -> list[str]:
    """The banned versions that a specifier lets in; conda's `=2.6` stands for `==2.6.*`."""
    clauses = [re.sub(r"^=(?!=)\s*([\w.]+)$", r"==\1.*", clause.strip()) for clause in specifier.split(",")]
    allowed = SpecifierSet(",".join(clauses))
    return [version for version in BANNED if allowed.contains(version, prereleases=True)]


def open_doors(name: str, text: str) -> Iterator[str]:
    """`file:line text` of everything that would install a banned version."""
    for number, line in enumerate(text.splitlines(), start=1):
        specifiers = [match.group(1) for match in SPECIFIED.finditer(line)]
        bare = INSTALLED.search(line) or (REQUIREMENTS.search(name) and BARE.match(line))
        if bare or any(admitted(specifier) for specifier in specifiers):
            yield f"{name}:{number} {line.strip()}"


def text_files() -> dict[str, str]:
    """Text of every file of the repository that can name a requirement, without this one."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git repository to list the files of: {error}")
    texts = {}
    for name in names:
        path = ROOT / name
        if path == Path(__file__) or not path.is_file() or path.stat().st_size > 1 << 20:
            continue
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return texts


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if re.match(r"[A-Za-z0-9]", line)]


def test_no_file_admits_a_banned_lightning() -> None:
    texts = text_files()
    naming = {name for name, text in texts.items() if SPECIFIED.search(text)}
    assert {"setup.cfg", "requirements.in", "requirements.lock"} <= naming
    assert [door for name, text in texts.items() for door in open_doors(name, text)] == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("setup.cfg", "    lightning>=2.6,<2.7"),
        ("setup.cfg", "    lightning"),
        ("requirements.in", "lightning[extra] >= 2.5 , != 2.6.2"),
        ("requirements.lock", "pytorch-lightning==2.6.3"),
        ("requirements.txt", "lightning~=2.6.0  # comment"),
        ("environment.yml", "  - lightning=2.6"),
        ("environment.yml", "  - lightning"),
        ("pyproject.toml", 'dependencies = ["lightning<3"]'),
        ("docs/install.md", "run `pip install lightning==2.6.2` first"),
        ("docs/install.md", "    python -m pip install torch lightning"),
    ],
)
def test_a_bad_line_is_found(name: str, line: str) -> None:
    assert list(open_doors(name, f"first line\n{line}\n")) == [f"{name}:2 {line.strip()}"]


@pytest.mark.parametrize(
    "line",
    [
        "lightning>=2.6.6,<2.7",
        "lightning==2.6.6",
        "lightning>2.6,!=2.6.2,!=2.6.3",
        "lightning-utilities==0.15.3",
        "# 2.6.2 and 2.6.3 of lightning carried a stealer",
        "import lightning as L",
        "lightning = 2.5.1",
        "lightning = esbnn_core.cli:main",
        "torchmetrics>=1.9",
    ],
)
def test_a_good_line_is_not(line: str) -> None:
    assert list(open_doors("requirements.in", line)) == []


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_what_is_locked_and_installed_is_clean(name: str) -> None:
    pins = [requirement for requirement in locked() if requirement.name == name]
    assert pins
    for pin in pins:
        (clause,) = pin.specifier
        assert clause.operator == "==" and Version(clause.version) >= Version("2.6.6")
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert installed not in BANNED


def pins_for(python: str) -> dict[str, str]:
    """What the lock installs on one Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    chosen = [r for r in locked() if r.marker is None or Marker(str(r.marker)).evaluate(environment)]
    return {r.name: str(r.specifier) for r in chosen}


@pytest.mark.parametrize(
    ("python", "torch", "torchvision"),
    [("3.10", "2.11.0", "0.26.0"), ("3.11", "2.15.0", "0.29.2"), ("3.12", "2.15.0", "0.29.2")],
)
def test_torch_and_torchvision_are_locked_as_a_pair(python: str, torch: str, torchvision: str) -> None:
    pins = pins_for(python)
    assert (pins["torch"], pins["torchvision"]) == (f"=={torch}", f"=={torchvision}")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_lock_satisfies_setup_cfg() -> None:
    options = setup_cfg()
    extras = {name: text for name, text in options["options.extras_require"].items() if name != "bench"}
    texts = [options["options"]["install_requires"], *extras.values()]
    wanted = [Requirement(line) for text in texts for line in text.splitlines() if line.strip() and line[0] != "#"]
    for python in ("3.10", "3.11", "3.12"):
        pins = pins_for(python)
        for requirement in wanted:
            if requirement.name != "esbnn":
                version = pins[requirement.name].removeprefix("==")
                assert requirement.specifier.contains(version), f"{requirement} against {version} on Python {python}"


def test_the_environment_installs_the_project_with_its_extras() -> None:
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    pip = lines.index("- pip:")
    assert "- pip" in lines[:pip] and "- -e .[all,dev]" in lines[pip:] and "- -c requirements.lock" in lines[pip:]
    assert any(re.fullmatch(r"- python=3\.1[0-2]", line) for line in lines[:pip])


def test_the_only_console_script_is_ours() -> None:
    scripts = setup_cfg()["options.entry_points"]["console_scripts"].split("\n")
    assert [script.split("=")[0].strip() for script in scripts if script.strip()] == ["esbnn"]
