"""The --out folder: files of the tables asked for, and the report of everything that the folder holds."""

from collections.abc import Sequence
from pathlib import Path

from esbnn_core.files import ROOT, write_atomically
from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.modes.results import TableResult, read_table_results, render_json
from tasks.reproduce.report.page import render_html
from tasks.reproduce.report.pictures import Picture, draw_ablation, draw_figure1, draw_proxies, gather_pictures
from tasks.reproduce.report.text import render_csv, render_markdown, render_proxy_csv, render_proxy_markdown
from tasks.reproduce.tables.configs import read_setting
from tasks.reproduce.tables.table import NAMES, Row, Table, read_tables


def write_table(result: TableResult, out: Path) -> None:
    """Write TABLE.md, TABLE.csv and TABLE.json, and print the Markdown."""
    text = render_markdown(result)
    write_atomically(out / f"{result.table}.md", text.encode())
    write_atomically(out / f"{result.table}.csv", render_csv(result).encode())
    write_atomically(out / f"{result.table}.json", render_json(result).encode())
    print(text)


def write_report(out: Path, tables: Path) -> None:
    """Write report.html, its pictures and the tables of the proxies.

    Args:
        out: folder with the results of this and earlier runs.
        tables: folder of the tables' TABLE.yaml.

    Raises:
        InputError: a file of the folder that this version did not write.
    """
    results, proxies = read_table_results(out, NAMES), _read_proxies(out / "proxy")
    if proxies:
        text = render_proxy_markdown(proxies)
        write_atomically(out / "proxies.md", text.encode())
        write_atomically(out / "proxies.csv", render_proxy_csv(proxies).encode())
        print(text)
    pictures = _draw_pictures(results, proxies, out, read_tables([result.table for result in results], tables))
    for picture in pictures:
        write_atomically(out / picture.name, picture.data)
    write_atomically(out / "report.html", render_html(results, proxies, pictures).encode())
    print(f"{out / 'report.html'}: {', '.join(result.table for result in results)}")


def _read_proxies(folder: Path) -> list[ProxyResult]:
    if not any(folder.glob("*.json")):
        return []
    from tasks.reproduce.modes.proxy import read_proxy_results  # loads the tasks, which counting does not need

    results: list[ProxyResult] = read_proxy_results(folder)
    return results


def _draw_pictures(
    results: Sequence[TableResult], proxies: Sequence[ProxyResult], out: Path, tables: Sequence[Table]
) -> list[Picture]:
    pictures = [draw_figure1(result) for result in results if result.table == "figure1"]
    if any(result.system != "ablation" for result in proxies):
        pictures.append(draw_proxies(proxies))
    if any(result.system == "ablation" for result in proxies):
        pictures.append(draw_ablation(proxies))
    rows = [row for table in tables for row in table.rows if row.task != "classification"]
    folders = {str(predictions_folder(row)): (row.system, predictions_folder(row)) for row in rows}
    return pictures + gather_pictures([*folders.values(), ("Other pictures", out / "pictures")])


def predictions_folder(row: Row) -> Path:
    """The folder that `predict` of a row's run draws into."""
    return ROOT / (row.run or read_setting(row.recipe, "trainer.default_root_dir")) / "predictions"
