"""Figure 2 of the ES paper, drawn anew: a plain binary layer, an expanded one, an expanded one with groups.

Source: papers.md#es, #tile-order, #equal-cost.
"""

from dataclasses import dataclass

from benchmarks.drawings.svg import Drawing

CHANNELS = 4
"""Nominal width of the drawn layer, before and after."""
CELL = 12
HUES = "abcd"
SIGNS = "1011010011010110"
"""Which weights of the drawn filters are +1; any pattern would do."""


@dataclass(frozen=True)
class Panel:
    """One of the three layers.

    Attributes:
        title: its heading.
        tau: expansion.
        groups: groups of the convolution.
        centre: x of its middle.
    """

    title: str
    tau: int
    groups: int
    centre: float


PANELS = (
    Panel("a  plain", 1, 1, 105),
    Panel("b  ES, τ = 2", 2, 1, 325),
    Panel("c  ES, τ = 2, two groups", 2, 2, 610),
)


def draw_cells(drawing: Drawing, centre: float, y: float, kinds: list[str]) -> None:
    """A row of channels, one cell each, of the given classes."""
    left = centre - len(kinds) * CELL / 2
    for place, kind in enumerate(kinds):
        drawing.box(left + place * CELL, y, CELL, CELL, f"cell {kind}")


def draw_panel(drawing: Drawing, panel: Panel) -> None:
    """One layer from its input at the top to its output at the bottom."""
    carried = panel.tau * panel.groups * CHANNELS
    maps, copies = CHANNELS // panel.tau, panel.tau**2 * panel.groups
    group_in, group_out = carried // panel.groups, maps // panel.groups
    x, half = panel.centre, carried * CELL / 2
    drawing.text(x, 30, panel.title, "title", "middle")

    drawing.text(x, 56, f"{carried} channels", "quiet", "middle")
    draw_cells(drawing, x, 62, ["grey" + (" off" if SIGNS[-1 - i] == "0" else "") for i in range(carried)])
    drawing.line((x, 78), (x, 98), arrow=True)
    drawing.text(x + 8, 92, "sign, binary convolution", "small")

    for filter_ in range(maps):
        group = filter_ // group_out
        middle = x - half + (group + 0.5) * group_in * CELL
        kinds = [HUES[filter_] + ("" if SIGNS[(5 * filter_ + i) % 16] == "1" else " off") for i in range(group_in)]
        draw_cells(drawing, middle, 104 + (filter_ % group_out if panel.groups > 1 else filter_) * (CELL + 3), kinds)
    drawing.text(x, 176, f"{maps} filters of {group_in} channels", "quiet", "middle")

    drawing.line((x, 182), (x, 202), arrow=True)
    draw_cells(drawing, x, 208, list(HUES[:maps]))
    drawing.line((x, 224), (x, 244), arrow=True)
    drawing.text(x + 8, 238, f"tile {copies} times" if copies > 1 else "(no tile)", "small")
    draw_cells(drawing, x, 250, [HUES[i % maps] for i in range(carried)])

    drawing.line((x, 266), (x, 286), arrow=True)
    drawing.text(x + 8, 280, f"{carried} BatchNorm affines", "small")
    left = x - half
    for i in range(carried):
        share = 1 - 0.75 * (i // maps) / max(copies - 1, 1)
        drawing.box(left + i * CELL, 292, CELL, CELL, f"cell {HUES[i % maps]}", f'style="fill-opacity: {share:.2f}"')

    drawing.line((x, 308), (x, 319), kind="line")
    drawing.text(x, 334, "+", "title", "middle")
    side = x - max(half, 60) - 12
    drawing.line((x - half, 68), (side, 68), (side, 329), (x - 10, 329), arrow=True)
    drawing.line((x, 340), (x, 356), arrow=True)
    drawing.text(x, 372, f"activation, {carried} channels", "quiet", "middle")

    drawing.text(x, 400, f"{maps} · {group_in} · k² = {maps * group_in}k² weights", "small", "middle")
    drawing.text(x, 418, f"a sum takes {group_in}k² + 1 values", "small", "middle")


def draw_es() -> str:
    """The three layers side by side, as an SVG file."""
    drawing = Drawing(
        760, 434, "Expanding and shrinking: a plain binary layer, ES, and ES with groups, at equal weights"
    )
    for panel in PANELS:
        draw_panel(drawing, panel)
    return drawing.render()
