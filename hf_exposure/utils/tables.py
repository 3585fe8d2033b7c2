"""Tables as text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from hf_exposure.utils.escapes import printable


def plain_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int] = ()
) -> str:
    """Columns of text, two spaces apart; those in `right` flush right."""
    from rich.cells import cell_len  # what a terminal shows, for scripts of double width

    aligned = set(right)
    lines = [[printable(cell) for cell in line] for line in (headings, *rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(headings))]
    out = []
    for line in lines:
        cells = []
        for place, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if place in aligned else cell + space)
        out.append("  ".join(cells).rstrip() + "\n")
    return "".join(out)


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as an HTML table."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
