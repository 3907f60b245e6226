"""report.html: every table and picture of an --out folder in one file that needs no other."""

import base64
import html
from collections.abc import Sequence

from tasks.reproduce.modes.proxy_results import ProxyResult
from tasks.reproduce.modes.results import TableResult
from tasks.reproduce.report.grids import Grid, make_cell_grid, make_cost_grid, make_proxy_grid
from tasks.reproduce.report.pictures import Picture
from tasks.reproduce.report.text import PROXY_NOTE, PROXY_TITLE

_CSS = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 0 1rem 4rem; }
nav a { display: inline-block; margin: 0 1rem .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #8884; }
th { border-bottom-width: 2px; }
td:first-child, th:first-child { position: sticky; left: 0; background: Canvas; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: white; }
figcaption, .notes { font-size: .85rem; }
code { overflow-wrap: anywhere; }
.proxy { border-left: .3rem solid #c44e52; padding-left: 1rem; }
"""


def render_html(tables: Sequence[TableResult], proxies: Sequence[ProxyResult], pictures: Sequence[Picture]) -> str:
    """The whole report.

    Args:
        tables: in their order.
        proxies: shown in a section of their own.
        pictures: shown with the table or the proxies that their name says (figure1.png, proxies.png, ablation.png),
            all others at the end.
    """
    by_name = {picture.name: picture for picture in pictures}
    links = [(table.table, table.title) for table in tables]
    parts = []
    for table in tables:
        # ablation.png is of the proxies, not of the table of that name
        picture = by_name.pop(f"{table.table}.png", None) if table.table != "ablation" else None
        parts.append(_render_table(table, picture))
    if proxies:
        links.append(("proxies", PROXY_TITLE))
        shown = [by_name.pop(name) for name in ("proxies.png", "ablation.png") if name in by_name]
        parts.append(_render_proxies(proxies, shown))
    if by_name:
        links.append(("pictures", "Pictures"))
        shown_last = "".join(_render_figure(picture) for picture in by_name.values())
        parts.append(f'<section id="pictures"><h2>Pictures of runs</h2>{shown_last}</section>')
    nav = "".join(f'<a href="#{name}">{html.escape(title)}</a>' for name, title in links)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>esbnn: tables</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>Tables of the papers, and what this project counts and measures</h1>\n<nav>{nav}</nav>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _render_table(table: TableResult, picture: Picture | None) -> str:
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    parts = [f'<section id="{table.table}"><h2>{html.escape(table.title)}</h2>']
    if notes:
        parts.append(f'<ul class="notes">{notes}</ul>')
    if picture is not None:
        parts.append(_render_figure(picture))
    cells = make_cell_grid(table)
    if cells is not None:
        parts.append(_render_grid(cells))
        parts.append("<h3>Operations and parameters</h3>")
    parts.append(_render_grid(make_cost_grid(table)))
    commands = dict.fromkeys((cell.system, cell.command) for cell in table.cells if cell.command)
    if commands:
        items = "".join(
            f"<li>{html.escape(system)}: <code>{html.escape(command)}</code></li>" for system, command in commands
        )
        parts.append(f"<details><summary>Commands</summary><ul>{items}</ul></details>")
    return "".join([*parts, "</section>"])


def _render_proxies(results: Sequence[ProxyResult], pictures: Sequence[Picture]) -> str:
    grid = make_proxy_grid(results)
    items = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in grid.below)
    return (
        f'<section id="proxies" class="proxy"><h2>{PROXY_TITLE}</h2><p>{html.escape(PROXY_NOTE)}</p>'
        + "".join(_render_figure(picture) for picture in pictures)
        + _render_grid(Grid(grid.head, grid.body, []))
        + f"<details><summary>Networks and commands</summary><ul>{items}</ul></details></section>"
    )


def _render_grid(grid: Grid) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in grid.head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in grid.body)
    below = "".join(f"<li>{html.escape(line)}</li>" for line in grid.below)
    text = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return text + (f'<ul class="notes">{below}</ul>' if below else "")


def _render_figure(picture: Picture) -> str:
    source = base64.b64encode(picture.data).decode()
    title, caption = html.escape(picture.title, quote=True), html.escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{title}"><figcaption><b>{html.escape(picture.title)}'
        f"</b> {caption}</figcaption></figure>"
    )
