"""A Markdown table, the one way in which reports and pages write it."""

from collections.abc import Sequence


def render_markdown_table(head: Sequence[object], rows: Sequence[Sequence[object]], *, aligned: bool = False) -> str:
    """A table as lines of Markdown, without a line break at its end.

    Args:
        head: of the columns.
        rows: each as long as head.
        aligned: pad the cells of a column to one width, for reading as plain text.
    """
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(len(line[place]) for line in lines) if aligned else 0 for place in range(len(head))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|".join("-" * (width + 2) for width in widths) if aligned else "|".join([" --- "] * len(head))
    return "\n".join([text[0], f"|{rule}|", *text[1:]])
