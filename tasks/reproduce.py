"""The papers' tables: published values cell by cell, what this project counts, evaluates and trains for each.

    python -m tasks.reproduce imagenet                                    operations and parameters, always at hand
    python -m tasks.reproduce figure1 --mode eval --data /data            what is present, and what the rest lacks
    python -m tasks.reproduce cifar10 --mode train --dry-run              the exact command lines
    python -m tasks.reproduce ablation --mode proxy --seeds 0 1 2         small networks of equal operations

Everything that was found in one --out folder is gathered in its report.html. An error is one sentence on stderr and
exit code 2; data or a file that is missing is no error but a line that says so.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from esbnn_core.checkpoint import write_atomically
from esbnn_core.errors import InputError
from tasks.reproduction import page, pictures, writing
from tasks.reproduction.evaluation import Found, evaluate_tables, kept
from tasks.reproduction.lines import Measured, Outcome, make_lines, outcome_json, read_outcomes
from tasks.reproduction.ops import setting
from tasks.reproduction.published import read_published
from tasks.reproduction.rows import ProxyRow
from tasks.reproduction.table import NAMES, ROOT, TABLES, Row, Table, read_table
from tasks.reproduction.training import train

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
    return 0


def _read(folder: Path, names: Iterable[str]) -> list[Table]:
    published = read_published(folder / "published.csv")
    return [read_table(name, published, folder) for name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.reproduce", description="The papers' tables")
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
    if args.mode == "train":
        _train(args, chosen)
        if args.dry_run:
            return
    if args.mode == "proxy":
        _proxy(args, tables)
    measured = kept(tables, args.out, args.data)
    if args.mode == "eval":
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = evaluate_tables(chosen, args.out, args.data, device=device, backend=args.backend or "auto")
        measured |= {key: _or_earlier(value, measured.get(key)) for key, value in found.items()}
    _write(args, tables, measured)


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


def _train(args: argparse.Namespace, tables: list[Table]) -> None:
    rows = [row for table in tables if not table.counts_alone for row in table.rows]
    if args.rows is None:
        rows = [row for row in rows if row.recipe]
    if not rows:
        raise InputError(f"table {args.table} has no row with a recipe: there is nothing to train")
    if args.trainer is not None and not (ROOT / args.trainer).is_file():
        raise InputError(f"--trainer {args.trainer} does not exist: give a config of configs/trainer")
    # the commands run in the repository, where their configs and runs lie
    data = args.data if Path.cwd() == ROOT else str(Path(args.data).absolute())
    train(rows, data, trainer=args.trainer, seeds=args.seeds, dry_run=bool(args.dry_run))


def _proxy(args: argparse.Namespace, tables: list[Table]) -> None:
    from tasks.reproduction.proxy import run_proxy

    systems = list(dict.fromkeys(system for table in tables for system in table.proxy))
    if not systems:
        raise InputError(f"table {args.table} has no proxy comparison: choose another, e.g. figure1")
    for system in systems:
        run_proxy(system, args.out / "proxy", data=args.data, seeds=args.seeds, jobs=args.jobs or 1)


def _read_proxies(folder: Path) -> list[ProxyRow]:
    if not any(folder.glob("*.json")):
        return []
    from tasks.reproduction.proxy import read_proxy

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


if __name__ == "__main__":
    sys.exit(main())
