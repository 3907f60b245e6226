"""The papers' tables: published values cell by cell, what this project counts, evaluates and trains for each.

    python -m tasks.reproduce imagenet                                    operations and parameters, always at hand
    python -m tasks.reproduce figure1 --mode eval --data /data            what is present, and what the rest lacks
    python -m tasks.reproduce cifar10 --mode train --dry-run              the exact command lines
    python -m tasks.reproduce ablation --mode proxy --seeds 0 1 2         small networks of equal operations

Everything that was found in one --out folder is gathered in its report.html. An error is one sentence on stderr and
exit code 2, Ctrl-C is 130; data or a file that is missing is no error but a line that says so.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from esbnn_core.errors import InputError
from esbnn_core.files import ROOT, write_atomically
from tasks.reproduce.modes.evaluation import Found, evaluate_tables, kept
from tasks.reproduce.modes.lines import Measured, Outcome, make_lines, outcome_json, read_outcomes
from tasks.reproduce.modes.ops import setting
from tasks.reproduce.modes.proxy_rows import ProxyRow
from tasks.reproduce.modes.training import train
from tasks.reproduce.report import page, pictures, writing
from tasks.reproduce.tables.published import read_published
from tasks.reproduce.tables.table import NAMES, TABLES, Row, Table, read_table

MODES = ("ops", "eval", "train", "proxy")
# which modes an option belongs to; given with another one it would be passed over in silence
BELONGS = {
    **{"seeds": ("train", "proxy"), "rows": ("eval", "train"), "dry_run": ("train",), "trainer": ("train",)},
    **{"device": ("eval",), "backend": ("eval",), "jobs": ("proxy",)},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        _check(args)
        _run(args, _read(args.tables, NAMES if args.table == "all" else [args.table]))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    return 0


def _read(folder: Path, names: Iterable[str]) -> list[Table]:
    published = read_published(folder / "published.csv")
    return [read_table(name, published, folder) for name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.reproduce", description="The papers' tables", allow_abbrev=False
    )
    parser.add_argument("table", choices=(*NAMES, "all"), help="which table")
    parser.add_argument("--mode", choices=MODES, default="ops", help="what to do beside counting (ops: nothing)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("results/tables"), help="folder of the report")
    parser.add_argument("--data", metavar="ROOT", default="data", help="folder of imagenet, VOCdevkit, sr, ...")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="train: a run for each; proxy: its seeds")
    parser.add_argument("--jobs", type=int, metavar="N", help="proxy: so many runs at a time, which share the cores")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="eval, train: these rows alone")
    parser.add_argument("--dry-run", action="store_true", default=None, help="train: print the commands alone")
    parser.add_argument("--trainer", metavar="FILE", help="train: config of another machine; the global batch stays")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="eval: default the GPU where there is one")
    parser.add_argument("--backend", choices=("auto", "latent", "packed"), help="eval: how binary layers run")
    parser.add_argument("--tables", metavar="DIR", type=Path, default=TABLES, help="folder of other tables")
    return parser


def _check(args: argparse.Namespace) -> None:
    for option, modes in BELONGS.items():
        if getattr(args, option) is not None and args.mode not in modes:
            raise InputError(
                f"--{option.replace('_', '-')} was given with --mode {args.mode}, it belongs to {' and '.join(modes)}: "
                f"leave it out or change the mode"
            )
    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs {args.jobs} was given, 1 or more was expected")
    if args.seeds is not None and (min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds)):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))} was given, different numbers from 0 were expected")


def _run(args: argparse.Namespace, tables: list[Table]) -> None:
    chosen = _chosen(tables, args.rows)
    rows = _trained(args, chosen) if args.mode == "train" else []
    systems = _systems(args, tables) if args.mode == "proxy" else []
    if not args.dry_run:
        _check_out(args.out)
    if args.mode == "train":
        # the commands run in the repository, where their configs and runs lie
        data = args.data if Path.cwd() == ROOT else str(Path(args.data).absolute())
        train(rows, data, trainer=args.trainer, seeds=args.seeds, dry_run=bool(args.dry_run))
        if args.dry_run:
            return
    failed = _proxy(args, systems)
    measured = kept(tables, args.out, args.data)
    if args.mode == "eval":
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = evaluate_tables(chosen, args.out, args.data, device=device, backend=args.backend or "auto")
        measured |= {key: _or_earlier(value, measured.get(key)) for key, value in found.items()}
    _write(args, tables, measured)
    if failed is not None:
        raise failed


def _check_out(out: Path) -> None:
    """Make the folder of the report and try it out, before hours of work are to be written there. Raises InputError."""
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is a file, a folder was expected: name another")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix="."):
            pass
    except OSError as error:
        raise InputError(f"--out {out} cannot be written to ({error.strerror}): name another folder") from error


def _chosen(tables: list[Table], names: list[str] | None) -> list[Table]:
    """The tables with those rows alone."""
    if names is None:
        return tables
    known = [row.name for table in tables for row in table.rows]
    for name in names:
        if name not in known:
            raise InputError(f"--rows {name!r} is in none of the tables asked for: their rows are {', '.join(known)}")
    return [replace(table, rows=tuple(row for row in table.rows if row.name in names)) for table in tables]


def _or_earlier(value: Measured, earlier: Measured | None) -> Measured:
    if value.value is not None or earlier is None:
        return value
    return replace(earlier, source=f"{earlier.source}; measured earlier, not now: {'; '.join(value.missing)}")


def _trained(args: argparse.Namespace, tables: list[Table]) -> list[Row]:
    """The rows that --mode train is to train."""
    rows = [row for table in tables if not table.counts_alone for row in table.rows]
    if args.rows is None:
        rows = [row for row in rows if row.recipe]
    if not rows:
        raise InputError(f"table {args.table} has no row with a recipe: there is nothing to train")
    if args.trainer is not None and not (ROOT / args.trainer).is_file():
        raise InputError(f"--trainer {args.trainer} does not exist: give a config of configs/trainer")
    return rows


def _systems(args: argparse.Namespace, tables: list[Table]) -> list[str]:
    """The systems that --mode proxy is to train."""
    systems = list(dict.fromkeys(system for table in tables for system in table.proxy))
    if not systems:
        raise InputError(f"table {args.table} has no proxy comparison: choose another, e.g. figure1")
    return systems


def _proxy(args: argparse.Namespace, systems: list[str]) -> InputError | OSError | None:
    """Train what has its data, and say what lacks it; a failure is given back: what went before it is to be shown."""
    if not systems:
        return None
    from tasks.reproduce.modes.proxy import gather_proxy, lacking, run_proxy

    out: Path = args.out / "proxy"
    try:
        lacks = {system: lacking(system, out, data=args.data, seeds=args.seeds) for system in systems}
        for system, told in lacks.items():
            gather_proxy(system, out)
            if told:
                print(f"{system} is not trained: {told}", flush=True)
        for system in systems:
            if not lacks[system]:
                run_proxy(system, out, data=args.data, seeds=args.seeds, jobs=args.jobs or 1)
    except (InputError, OSError) as error:
        return error
    return None


def _read_proxies(folder: Path) -> list[ProxyRow]:
    if not any(folder.glob("*.json")):
        return []
    from tasks.reproduce.modes.proxy import read_proxy

    rows: list[ProxyRow] = read_proxy(folder)
    return rows


def _write(args: argparse.Namespace, tables: list[Table], measured: Found) -> None:
    """The tables asked for, and the report of all that the folder holds."""
    out: Path = args.out
    for table in tables:
        own = {} if table.counts_alone else {key: value for key, value in measured.items() if _of(key, table)}
        lines = make_lines(table, own, args.data)
        outcome = Outcome(table.name, table.title, list(table.notes), args.mode, lines)
        text = writing.markdown(outcome)
        write_atomically(out / f"{table.name}.md", text.encode())
        write_atomically(out / f"{table.name}.csv", writing.outcome_csv(outcome).encode())
        write_atomically(out / f"{table.name}.json", outcome_json(outcome).encode())
        print(text)
    outcomes, proxies = read_outcomes(out, NAMES), _read_proxies(out / "proxy")
    if proxies:
        text = writing.proxy_markdown(proxies)
        write_atomically(out / "proxies.md", text.encode())
        write_atomically(out / "proxies.csv", writing.proxy_csv(proxies).encode())
        print(text)
    drawings = _pictures(outcomes, proxies, out, _read(args.tables, [outcome.table for outcome in outcomes]))
    for drawing in drawings:
        write_atomically(out / drawing.name, drawing.data)
    write_atomically(out / "report.html", page.page(outcomes, proxies, drawings).encode())
    print(f"{out / 'report.html'}: {', '.join(outcome.table for outcome in outcomes)}")


def _of(key: tuple[str, str, str], table: Table) -> bool:
    return any(row.name == key[0] for row in table.rows)


def _pictures(
    outcomes: list[Outcome], proxies: list[ProxyRow], out: Path, tables: list[Table]
) -> list[pictures.Picture]:
    found = [pictures.figure1(outcome) for outcome in outcomes if outcome.table == "figure1"]
    if any(row.system != "ablation" for row in proxies):
        found.append(pictures.proxies(proxies))
    if any(row.system == "ablation" for row in proxies):
        found.append(pictures.ablation(proxies))
    rows = [row for table in tables for row in table.rows if row.task != "classification"]
    folders = {str(_predictions(row)): (row.system, _predictions(row)) for row in rows}
    return found + pictures.drawn([*folders.values(), ("Other pictures", out / "pictures")])


def _predictions(row: Row) -> Path:
    return ROOT / (row.run or setting(row.recipe, "trainer.default_root_dir")) / "predictions"
