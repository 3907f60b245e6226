"""The papers' tables: published values cell by cell, and what this project counts, measures and trains for each.

    python -m tasks.reproduce imagenet                                    operations and parameters
    python -m tasks.reproduce figure1 --mode eval --data /data            what is at hand, and what is missing
    python -m tasks.reproduce cifar10 --mode train --dry-run              the exact command lines
    python -m tasks.reproduce ablation --mode proxy --seeds 0 1 2         small networks of equal operations
    python -m tasks.reproduce study --mode proxy --systems resnet8_best   one comparison of several

All results of one --out folder are gathered in its report.html. An error is one sentence on stderr and exit code 2,
Ctrl-C is 130. Missing data or a missing file is not an error but a line that names it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from esbnn_core.errors import InputError, check_counts, check_output_folder, check_workers, refuse
from esbnn_core.files import ROOT
from esbnn_core.lit.children import passes_sigterm_on
from tasks.reproduce.modes.evaluation import evaluate_tables, read_evaluated
from tasks.reproduce.modes.results import Measurement, TableResult, make_cells
from tasks.reproduce.modes.training import train_rows
from tasks.reproduce.report.folder import write_report, write_table
from tasks.reproduce.tables.table import NAMES, TABLES, Row, Table, read_tables

MODES = ("ops", "eval", "train", "proxy")
# the modes of an option; another mode would ignore it
OPTION_MODES = {
    **{"seeds": ("train", "proxy"), "rows": ("eval", "train"), "dry_run": ("train",), "trainer": ("train",)},
    **{"device": ("eval",), "backend": ("eval",), "jobs": ("proxy",), "systems": ("proxy",), "variants": ("proxy",)},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        _check(args)
        with passes_sigterm_on():
            _run(args, read_tables(NAMES if args.table == "all" else [args.table], args.tables))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as in shells
    except Exception as error:
        return refuse(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.reproduce", description="The papers' tables", allow_abbrev=False
    )
    parser.add_argument("table", choices=(*NAMES, "all"), help="which table")
    parser.add_argument("--mode", choices=MODES, default="ops", help="what to do besides counting (ops: nothing)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("results/tables"), help="folder of the report")
    parser.add_argument("--data", metavar="ROOT", default="data", help="folder of imagenet, VOCdevkit, sr, ...")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="train, proxy: one run a seed")
    parser.add_argument("--jobs", type=int, metavar="N", help="proxy: runs at a time, which share the cores")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="proxy: only these files of configs/proxy")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="proxy: only these variants of them")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="eval, train: only these rows")
    parser.add_argument("--dry-run", action="store_true", default=None, help="train: only print the commands")
    parser.add_argument("--trainer", metavar="FILE", help="train: config of another machine; the global batch stays")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="eval: default the GPU if there is one")
    parser.add_argument("--backend", choices=("auto", "latent", "packed"), help="eval: how binary layers run")
    parser.add_argument("--tables", metavar="DIR", type=Path, default=TABLES, help="folder of other tables")
    return parser


def _check(args: argparse.Namespace) -> None:
    for option, modes in OPTION_MODES.items():
        if getattr(args, option) is not None and args.mode not in modes:
            raise InputError(
                f"--{option.replace('_', '-')} must be given with --mode {' or '.join(modes)}, got --mode {args.mode}: "
                f"leave it out or change the mode"
            )
    if args.jobs is not None:
        check_counts(**{"--jobs": args.jobs})
        check_workers("--jobs", args.jobs)
    if args.seeds is not None and len({seed for seed in args.seeds if 0 <= seed < 2**32}) < len(args.seeds):
        raise InputError(
            f"--seeds must be different numbers from 0 to {2**32 - 1}, got {' '.join(map(str, args.seeds))}"
        )


def _run(args: argparse.Namespace, tables: list[Table]) -> None:
    chosen = _choose_rows(tables, args.rows)
    rows = _trained_rows(args, chosen) if args.mode == "train" else []
    systems = _proxy_systems(args, tables) if args.mode == "proxy" else []
    if not args.dry_run:
        check_output_folder(args.out, "--out")
    if args.mode == "train":
        # the commands run in the repository, to which the paths of their configs and runs are relative
        data = args.data if Path.cwd() == ROOT else str(Path(args.data).absolute())
        train_rows(rows, data, trainer=args.trainer, seeds=args.seeds, dry_run=bool(args.dry_run))
        if args.dry_run:
            return
    failure = _train_proxies(args, systems)
    measured = read_evaluated(tables, args.out, args.data)
    if args.mode == "eval":
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = evaluate_tables(chosen, args.out, args.data, device=device, backend=args.backend or "auto")
        measured |= {key: _prefer_value(value, measured.get(key)) for key, value in found.items()}
    for table in tables:
        cells = make_cells(table, {} if table.counts_only else measured, args.data)
        write_table(TableResult(table.name, table.title, list(table.notes), args.mode, cells), args.out)
    write_report(args.out, args.tables)
    if failure is not None:
        raise failure


def _choose_rows(tables: list[Table], names: list[str] | None) -> list[Table]:
    """The tables with only those rows."""
    if names is None:
        return tables
    known = [row.name for table in tables for row in table.rows]
    for name in names:
        if name not in known:
            raise InputError(f"--rows must be rows of the tables asked for ({', '.join(known)}), got {name!r}")
    return [replace(table, rows=tuple(row for row in table.rows if row.name in names)) for table in tables]


def _prefer_value(now: Measurement, earlier: Measurement | None) -> Measurement:
    if now.value is not None or earlier is None:
        return now
    return replace(earlier, source=f"{earlier.source}; measured earlier, not now: {'; '.join(now.missing)}")


def _trained_rows(args: argparse.Namespace, tables: list[Table]) -> list[Row]:
    """The rows that --mode train trains."""
    rows = [row for table in tables if not table.counts_only for row in table.rows]
    if args.rows is None:
        rows = [row for row in rows if row.recipe]
    if not rows:
        raise InputError(f"table {args.table} has no row with a recipe: there is nothing to train")
    if args.trainer is not None and not (ROOT / args.trainer).is_file():
        raise InputError(f"--trainer {args.trainer} does not exist: give a config of configs/trainer")
    return rows


def _proxy_systems(args: argparse.Namespace, tables: list[Table]) -> list[str]:
    """The systems that --mode proxy trains."""
    known = list(dict.fromkeys(system for table in tables for system in table.proxy))
    if not known:
        raise InputError(f"table {args.table} has no proxy comparison: choose another, e.g. figure1")
    for name in args.systems or ():
        if name not in known:
            raise InputError(f"--systems must be of the tables asked for ({', '.join(known)}), got {name!r}")
    systems = [system for system in known if args.systems is None or system in args.systems]
    if args.variants is not None:
        from tasks.reproduce.modes.proxy import chosen_variants

        for system in systems:
            chosen_variants(system, args.variants)
    return systems


def _train_proxies(args: argparse.Namespace, systems: list[str]) -> InputError | OSError | None:
    """Train the systems that can be trained here and name what the others lack.

    Returns:
        A failure, so that the report can show the results before it; None without one.
    """
    if not systems:
        return None
    from tasks.reproduce.modes.proxy import describe_lacking, gather_proxy, run_proxy

    out: Path = args.out / "proxy"
    try:
        given = {"data": args.data, "seeds": args.seeds, "only": args.variants or ()}
        missing = {system: describe_lacking(system, out, **given) for system in systems}
        for system in systems:
            gather_proxy(system, out)
            if missing[system]:
                print(f"{system} is not trained: {missing[system]}", flush=True)
        for system in systems:
            if not missing[system]:
                run_proxy(system, out, jobs=args.jobs or 1, **given)
    except (InputError, OSError) as error:
        return error
    return None
