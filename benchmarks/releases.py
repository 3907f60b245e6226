"""Train our released networks anew, and put what was trained into checkpoints/ and its catalogue.

python -m benchmarks.releases [--only fashion cifar10] [--data data] [--jobs 1] [--out runs/release]
python -m benchmarks.releases --keep [--only fashion cifar10] [--data data] [--out runs/release]

Base, Rep and ES of one ResNet-8 for each dataset, two seeds each: base and Rep with thresholds that start apart, ES
with its copies apart. A network is the task's own `fit` in OUT/NAME, in a process of its own; one whose folder has the
packed file is not trained again. --keep trains nothing: it measures the packed files on the CPU, copies them with
config and curve into checkpoints/NAME and writes their entries of checkpoints/manifest.json and the pages' tables.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from benchmarks.command import positive, run_command
from esbnn_core import count, load_checkpoint
from esbnn_core.checkpoint.catalogue import CATALOGUE, FOLDER, read_catalogue
from esbnn_core.errors import InputError, check_choice
from esbnn_core.files import ROOT, write_atomically
from tasks.classification.datasets import dataset_info
from tasks.evaluate.measure import evaluate
from tasks.evaluate.options import EvaluateRequest
from tasks.evaluate.report import make_own_entry
from tasks.reproduce.modes.proxy_run import run_logged
from tasks.reproduce.report.markdown import render_markdown_table

FAMILIES = {"fashion": "reactnet_resnet8", "cifar10": "reactnet_resnet8x4"}
"""Recipe in configs/releases -> the base network."""
SETS = {"fashion": "fashion_mnist_mini", "cifar10": "cifar10"}
"""Recipe -> the dataset that it is measured on."""
KINDS = {"": ("channels", False), "es_": ("apart", True), "rep_": ("channels", True)}
"""Prefix of a network -> its configs/start_*.yaml, and whether it has a tau."""
SEEDS = (0, 1)
PAGES = (ROOT / "README.md", ROOT / "docs" / "reports" / "evidence.md")
"""Pages that have the table, between <!-- releases --> and <!-- end -->."""
FILES = ("packed.safetensors", "config.yaml", "metrics.csv")
"""What a release keeps of its run."""


@dataclass(frozen=True)
class Release:
    """One released network.

    Attributes:
        recipe: of FAMILIES.
        prefix: of KINDS.
        seed: of the run.
    """

    recipe: str
    prefix: str
    seed: int

    @property
    def name(self) -> str:
        """Of the catalogue: the seed 0 has the plain name."""
        return f"{self.prefix}{FAMILIES[self.recipe]}_{self.recipe}" + (f"_seed{self.seed}" if self.seed else "")

    @property
    def config(self) -> str:
        """The recipe, below the repository."""
        return f"configs/releases/{self.recipe}.yaml"

    def words(self, out: Path, data: str) -> list[str]:
        """The words after `python` that train it."""
        start, expands = KINDS[self.prefix]
        words = ["-m", "tasks.classification", "fit", "-c", self.config, "-c", f"configs/start_{start}.yaml"]
        words += ["--model.network", self.prefix + FAMILIES[self.recipe]]
        words += ["--model.network_options.tau", "2"] if expands else []
        folder = str(out / self.name)
        words += ["--data.root", data, "--seed_everything", str(self.seed), "--trainer.default_root_dir", folder]
        return [*words, "--trainer.logger.init_args.save_dir", folder]

    def command(self) -> str:
        """As it stands in the catalogue, with no place of this machine."""
        return shlex.join(["python", *self.words(Path("runs/release"), "data")])


def train(release: Release, out: Path, data: str, jobs: int) -> None:
    """Train one unless it is there.

    Raises:
        InputError: see run_logged.
    """
    folder = out / release.name
    if (folder / FILES[0]).exists():
        print(f"{release.name}: there", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    run_logged(release.command(), release.words(out, data), folder / "log.txt", jobs, folder=ROOT)
    print(f"{release.name}: trained", flush=True)


def keep(releases: Sequence[Release], out: Path, data: str) -> None:
    """Measure what all runs left, then copy it and write the entries.

    Raises:
        InputError: a run that has not ended or a file that cannot be measured, before anything is copied.
    """
    for release in releases:
        for file in FILES:
            if not (out / release.name / file).exists():
                raise InputError(f"{out / release.name} must have {file}, got none: train {release.name} first")
    asked = [
        EvaluateRequest(str(out / release.name / FILES[0]), data=data, dataset=SETS[release.recipe])
        for release in releases
    ]
    for release, result in zip(releases, [evaluate(request) for request in asked], strict=True):
        folder = FOLDER / release.name
        folder.mkdir(exist_ok=True)
        for file in FILES:
            shutil.copyfile(out / release.name / file, folder / file)
        result["file"] = str(folder / FILES[0])
        entry = make_own_entry(result, release.name, FOLDER, release.config, release.command(), None)
        epochs = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"]
        note = f"Seed {release.seed}, {epochs} epochs; the weights of the last one."
        _write_entry(json.loads(replace(entry, note=note).json()))
        print(f"{release.name}: {entry.metric} {entry.value}, {entry.bytes:,} bytes", flush=True)


def render_table() -> str:
    """The released networks, a row each with the values of all its seeds."""
    own = [entry for entry in read_catalogue() if entry.file is not None]
    body = []
    for first in (entry for entry in own if entry.release == entry.name):
        same = [entry for entry in own if entry.release == first.name]
        info = dataset_info(first.dataset)
        cost = count(load_checkpoint(FOLDER / str(first.file)), (info.channels, info.size, info.size))
        values = ", ".join(f"{entry.value:.2f}" for entry in same)
        body.append([first.name, values, f"{cost.ops:,.0f}", f"{cost.binary_params:,}", f"{first.bytes:,} bytes"])
    return render_markdown_table(["checkpoint", "top-1, a seed each", "OPs", "1-bit weights", "file"], body)


def write_tables() -> None:
    """Put the table into the pages that have it."""
    table = render_table()
    for page in PAGES:
        before, _, rest = page.read_text(encoding="utf-8").partition("<!-- releases -->\n")
        write_atomically(page, f"{before}<!-- releases -->\n{table}\n{rest[rest.index('<!-- end -->') :]}".encode())


def _write_entry(entry: dict[str, object]) -> None:
    """Put an entry in the place of the one of its name, or at the end."""
    catalogue = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    entries = catalogue["checkpoints"]
    names = [known["name"] for known in entries]
    if entry["name"] in names:
        entries[names.index(entry["name"])] = entry
    else:
        entries.append(entry)
    write_atomically(CATALOGUE, (json.dumps(catalogue, indent=2) + "\n").encode())


def main() -> None:
    """Train, or keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), metavar="RECIPE")
    parser.add_argument("--data", default="data", help="folder of the datasets")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time, which share cores and device")
    parser.add_argument("--out", type=Path, default=Path("runs/release"), help="folder of the runs")
    parser.add_argument("--keep", action="store_true", help="take over what was trained")
    args = parser.parse_args()
    for recipe in args.only:
        check_choice("--only", recipe, FAMILIES)
    releases = [Release(recipe, prefix, seed) for recipe in args.only for seed in SEEDS for prefix in KINDS]
    if args.keep:
        keep(releases, args.out, args.data)
        write_tables()
        return
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(lambda release: train(release, args.out.absolute(), args.data, args.jobs), releases):
            pass


if __name__ == "__main__":
    run_command(main)
