"""The little SVG that the drawings need: a card with colours for light and dark, boxes, text, arrows."""

from xml.sax.saxutils import escape

STYLE = """
.card { fill: #ffffff; stroke: #d5dae1 }
text { fill: #1d2530; font-family: Helvetica, Arial, sans-serif; font-size: 12px }
.small { font-size: 11px }
.quiet { fill: #5b6675; font-size: 11px }
.title { font-weight: bold; font-size: 14px }
.line { stroke: #5b6675; fill: none; stroke-width: 1.3 }
.head { fill: #5b6675 }
.grid { stroke: #e4e8ee; fill: none }
.band { fill: #f2f5f9 }
.grey { fill: #aab4c1 }
.a { fill: #2f6fce } .b { fill: #e0862c } .c { fill: #3a9a5f } .d { fill: #9858c4 }
.cell { stroke: #ffffff; stroke-width: 1 }
.off { fill-opacity: 0.28 }
@media (prefers-color-scheme: dark) {
  .card { fill: #1c222b; stroke: #39424e }
  text { fill: #e8ecf2 }
  .quiet { fill: #9ba7b6 }
  .line { stroke: #9ba7b6 } .head { fill: #9ba7b6 }
  .grid { stroke: #323b47 } .band { fill: #252d38 } .grey { fill: #66717f }
  .a { fill: #6ea4f4 } .b { fill: #f0a350 } .c { fill: #62c487 } .d { fill: #bd8be4 }
  .cell { stroke: #1c222b }
}
"""


class Drawing:
    """An SVG picture of a given size, to which parts are added in the order that they cover each other.

    Args:
        width: in pixels.
        height: in pixels.
        label: what the picture shows, for readers who do not see it.
    """

    def __init__(self, width: int, height: int, label: str) -> None:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        )
        self.parts = [
            f'{head} role="img" aria-label="{escape(label)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, kind: str, extra: str = "") -> None:
        """A rectangle of the classes `kind`."""
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{extra and " " + extra}/>'
        )

    def dot(self, x: float, y: float, radius: float, kind: str, title: str) -> None:
        """A disc that shows `title` under the pointer."""
        self.parts.append(
            f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"><title>{escape(title)}</title></circle>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", extra: str = "") -> None:
        """One line of text, its baseline at y."""
        kind = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text{kind} x="{x:g}" y="{y:g}" text-anchor="{anchor}"{extra and " " + extra}>{escape(text)}</text>'
        )

    def line(self, *points: tuple[float, float], arrow: bool = False, kind: str = "line") -> None:
        """Straight pieces from point to point; an arrow ends with a head that points as its last piece does."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            side = [(x - 6 * dx + 3.5 * s * dy, y - 6 * dy + 3.5 * s * dx) for s in (1, -1)]
            corners = " ".join(f"{a:g},{b:g}" for a, b in [(x, y), *side])
            self.parts.append(f'<polygon class="head" points="{corners}"/>')

    def render(self) -> str:
        """The whole file."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"
